// Runs a model that jaxtrain exported, in a browser or in Node.

export { Bundle, sha256 } from "./bundle.js";
export { ConfigError, Damaged } from "./errors.js";
export { decoded } from "./golden.js";
export { FORMAT, Signature } from "./signature.js";
export { decoderOf, tokenizerOf } from "./tokenizer.js";
