// What the page says, in English and Portuguese.

const WORDS = {
  en: {
    language: "Language",
    input: "Input",
    output: "Output",
    facts: "On this device",
    examples: "Example",
    own: "– your own –",
    engine: "Computed by",
    graph: "Weights",
    privacy: "All is computed on this device. What you enter is not sent anywhere.",
    weights: "The model's weights are in this page's files, and whoever opens it can read them.",
    offline: "It is kept for use without a network.",
    online: "It is not kept for use without a network: this browser allows no service worker here.",
    loadingRuntime: "Loading ONNX Runtime …",
    loadingModel: "Loading the model, and checking its hash and golden examples …",
    latency: "Latency, last",
    median: "Median of {n}",
    loaded: "Load to first answer",
    size: "Model",
    runtime: "ONNX Runtime",
    memory: "Memory",
    golden: "{n} golden examples, largest difference",
    bytes: "{n} of {most} bytes",
    tokens: "{n} of {most} tokens",
    clear: "Clear",
    file: "From a file",
    seen: "What the model sees",
    draw: "Draw with mouse, finger or pen; or choose an example or a file",
    another: "another value",
    missing: "empty: not known",
    continue: "Continue the text",
    stop: "Stop",
    temperature: "Temperature {n}",
    length: "Length",
    next: "next",
    failedGpu: "WebGPU computed something else, so WebAssembly is used.",
  },
  pt: {
    language: "Idioma",
    input: "Entrada",
    output: "Saída",
    facts: "Neste aparelho",
    examples: "Exemplo",
    own: "– o seu –",
    engine: "Calculado por",
    graph: "Pesos",
    privacy: "Tudo é calculado neste aparelho. O que você digita não é enviado a lugar nenhum.",
    weights: "Os pesos do modelo estão nos arquivos desta página: quem a abre pode lê-los.",
    offline: "Fica guardada para uso sem rede.",
    online: "Não fica guardada para uso sem rede: este navegador não permite um service worker aqui.",
    loadingRuntime: "Carregando o ONNX Runtime …",
    loadingModel: "Carregando o modelo e conferindo seu hash e os exemplos de referência …",
    latency: "Latência, última",
    median: "Mediana de {n}",
    loaded: "Do início à primeira resposta",
    size: "Modelo",
    runtime: "ONNX Runtime",
    memory: "Memória",
    golden: "{n} exemplos de referência, maior diferença",
    bytes: "{n} de {most} bytes",
    tokens: "{n} de {most} tokens",
    clear: "Limpar",
    file: "De um arquivo",
    seen: "O que o modelo vê",
    draw: "Desenhe com mouse, dedo ou caneta; ou escolha um exemplo ou um arquivo",
    another: "outro valor",
    missing: "vazio: não se sabe",
    continue: "Continuar o texto",
    stop: "Parar",
    temperature: "Temperatura {n}",
    length: "Comprimento",
    next: "próximo",
    failedGpu: "A WebGPU calculou outra coisa; usa-se WebAssembly.",
  },
};

export const LANGUAGES = { en: "English", pt: "Português" };

let language = navigator.languages.map((each) => each.slice(0, 2)).find((each) => each in WORDS) ?? "en";

export const chosen = () => language;

/** Says all of the page in a language. */
export function speak(chosenLanguage) {
  language = chosenLanguage;
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-say]")) {
    element.textContent = say(element.dataset.say, JSON.parse(element.dataset.with ?? "{}"));
  }
}

/** A sentence of the page. */
export function say(word, values = {}) {
  return WORDS[language][word].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Makes an element say this in every language. */
export function saying(element, word, values = {}) {
  element.dataset.say = word;
  element.dataset.with = JSON.stringify(values);
  element.textContent = say(word, values);
  return element;
}

/** A number in the language's digits. */
export const number = (value, digits = 3) =>
  value.toLocaleString(language, { maximumSignificantDigits: digits, useGrouping: false });

/** Bytes in the usual unit. */
export function size(bytes) {
  const [unit, scale] = bytes < 1e6 ? ["kB", 1e3] : ["MB", 1e6];
  return `${number(bytes / scale)} ${unit}`;
}
