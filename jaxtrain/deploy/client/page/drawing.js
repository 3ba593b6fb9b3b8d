// The field of an image: draw it, take it from a file, or from an example.

import { make } from "./fields.js";
import { saying } from "./words.js";

const SIDE = 256; // pixels of the pad on its longer side

/** See `fieldOf`. Ink has the end of the scale that is rarer in the example. */
export function drawing(input, example, changed) {
  const [height, width, channels] = input.shape;
  const [low, high] = input.range;
  const scale = SIDE / Math.max(height, width);
  const pad = make("canvas", { className: "draw", width: Math.round(width * scale), height: Math.round(height * scale) });
  const seen = make("canvas", { width, height });
  seen.style.width = `${SIDE / 2}px`;
  pad.setAttribute("role", "img");
  seen.setAttribute("role", "img");
  const brush = pad.getContext("2d", { willReadFrequently: true });
  const light = isLight(input, example);
  const [ground, ink] = light ? ["#fff", "#000"] : ["#000", "#fff"];
  let pixels = null; // of an example; null: what is on the pad

  const clear = () => {
    pixels = null;
    brush.fillStyle = ground;
    brush.fillRect(0, 0, pad.width, pad.height);
  };

  /** The mean of each cell of the pad, on the scale of the input. */
  const drawn = () => {
    const { data } = brush.getImageData(0, 0, pad.width, pad.height);
    const sums = new Float64Array(height * width * 3);
    const counts = new Uint32Array(height * width);
    for (let y = 0; y < pad.height; y++) {
      for (let x = 0; x < pad.width; x++) {
        const cell = Math.floor((y * height) / pad.height) * width + Math.floor((x * width) / pad.width);
        counts[cell]++;
        for (let c = 0; c < 3; c++) sums[cell * 3 + c] += data[(y * pad.width + x) * 4 + c];
      }
    }
    const found = [];
    for (let cell = 0; cell < height * width; cell++) {
      const colour = [0, 1, 2].map((c) => sums[cell * 3 + c] / counts[cell] / 255);
      const parts = channels === 1 ? [0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]] : colour;
      for (const part of parts) {
        const value = low + part * (high - low);
        found.push(/^float|^bfloat/.test(input.dtype) ? Math.min(high, Math.max(low, value)) : Math.round(value));
      }
    }
    return found;
  };

  const show = () => {
    const data = pixels ?? drawn();
    const image = new ImageData(width, height);
    for (let cell = 0; cell < height * width; cell++) {
      for (let c = 0; c < 3; c++) {
        const value = data[cell * channels + (channels === 1 ? 0 : c)];
        image.data[cell * 4 + c] = Math.round(((value - low) / (high - low)) * 255);
      }
      image.data[cell * 4 + 3] = 255;
    }
    seen.getContext("2d").putImageData(image, 0, 0);
  };

  const update = () => {
    show();
    changed();
  };

  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
  };
  let last = null;
  const stroke = (event) => {
    const here = at(event);
    brush.strokeStyle = ink;
    brush.lineWidth = Math.max(8, 1.3 * scale * (Math.max(height, width) / Math.max(8, Math.max(height, width) / 2)));
    brush.lineCap = brush.lineJoin = "round";
    brush.beginPath();
    brush.moveTo(...last);
    brush.lineTo(...here);
    brush.stroke();
    last = here;
    update();
  };
  pad.addEventListener("pointerdown", (event) => {
    if (pixels !== null) clear();
    pad.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(event);
  });
  pad.addEventListener("pointermove", (event) => last !== null && stroke(event));
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (last = null));

  const erase = saying(make("button", { type: "button" }), "clear");
  erase.addEventListener("click", () => {
    clear();
    update();
  });
  const file = make("input", { type: "file", accept: "image/*" });
  file.addEventListener("change", async () => {
    if (file.files.length === 0) return;
    const picture = await createImageBitmap(file.files[0]).catch(() => null);
    if (picture === null) return;
    pixels = null;
    brush.fillStyle = "#fff";
    brush.fillRect(0, 0, pad.width, pad.height);
    brush.drawImage(picture, 0, 0, pad.width, pad.height);
    update();
  });
  const choose = make("label", {}, saying(make("span"), "file"), " ", file);
  const preview = make("div", {}, saying(make("p", { className: "count" }), "seen"), seen);
  const how = saying(make("p", { className: "count" }), "draw");
  const title = make("span", { textContent: input.name });
  const controls = make("div", { className: "row" }, erase, choose);
  const element = make("div", { className: "field" }, title, how, make("div", { className: "pad" }, pad, preview), controls);
  pad.setAttribute("aria-label", input.name);

  clear();
  return {
    element,
    value: () => ({ data: pixels ?? drawn(), shape: [...input.shape] }),
    set: (given) => {
      pixels = [given?.data ?? given].flat(Infinity).map(Number);
      show();
      brush.imageSmoothingEnabled = false;
      brush.drawImage(seen, 0, 0, pad.width, pad.height);
    },
  };
}

/** Whether most pixels of an image are in the upper half of the scale. */
function isLight({ range: [low, high] }, example) {
  const values = [example?.data ?? example].flat(Infinity).map(Number);
  return values.filter((each) => each > (low + high) / 2).length > values.length / 2;
}
