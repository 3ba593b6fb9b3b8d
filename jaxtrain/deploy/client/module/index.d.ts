/** The dtypes of tensors. */
export type DType =
  | "bool" | "uint8" | "int8" | "uint16" | "int16" | "uint32" | "int32" | "float16" | "bfloat16" | "float32";

/** Numbers of a dtype; float16 and bfloat16 as their bits. */
export type Numbers =
  | Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | Float32Array;

/** An array with rows on dim 0. */
export interface TensorData {
  dtype: DType;
  shape: number[];
  data: Numbers;
}

/** An array that the graph takes or gives: `shape` is that of a row. */
export interface TensorSpec {
  name: string;
  dtype: DType;
  shape: number[];
  /** Of an output of probabilities, what each of its numbers is about. */
  classes: string[];
}

/** A raw value: a text, its bytes, a number, null for one that is missing, or an array of numbers. */
export type RawValue =
  | string | number | bigint | boolean | null | undefined
  | Uint8Array | Exclude<Numbers, Uint8Array> | Float64Array
  | readonly RawValue[]
  | { data: ArrayLike<number>; shape: number[] };

/** One raw input, by the names of the signature's inputs. */
export type Row = Record<string, RawValue>;

interface InputBase {
  name: string;
  /** The name of the tensor that it becomes. */
  tensor: string;
}

/** What a person gives. */
export type Input =
  | (InputBase & { kind: "text"; bytes: number; keep: "first" | "last"; least: number })
  | (InputBase & {
      kind: "tokens"; tokenizer: string; length: number; pad: number; keep: "first" | "last"; least: number;
      encode: ((text: string) => number[]) | null;
    })
  | (InputBase & { kind: "image" | "array"; shape: number[]; dtype: DType; range: number[]; missing: boolean })
  | (InputBase & { kind: "audio"; samples: number; rate: number })
  | (InputBase & { kind: "number"; missing: boolean; integer: boolean })
  | (InputBase & { kind: "category"; values: (string | number)[]; first: number; unknown: number | null });

/** How a bundle of a language model continues texts. */
export interface Generation {
  /** The tokens that the graph of prompts takes. */
  prompt: number;
  /** The most tokens of a prompt and what follows it. */
  context: number;
  /** Tokens from this one on are never generated. */
  vocab: number;
  /** The token that ends a text. */
  stop: number | null;
  /** Whether an empty prompt begins with it. */
  begins: boolean;
  /** How texts become tokens: "bytes", or the name of a tokenizer file. */
  tokens: string;
  prefill_inputs: TensorSpec[];
  prefill_outputs: TensorSpec[];
  decode_inputs: TensorSpec[];
  decode_outputs: TensorSpec[];
}

export interface GenerateOptions {
  /** The most tokens: 200 by default, or what there is room for. */
  tokens?: number;
  /** Logits are divided by it; 0 takes the likeliest token each time. 1 by default. */
  temperature?: number;
  /** Draw from the k likeliest tokens. */
  topK?: number;
  /** Draw from the fewest likeliest tokens whose probabilities reach p. */
  topP?: number;
  /** Draw from tokens at least p times as likely as the likeliest. */
  minP?: number;
  /** The same seed draws the same tokens, in JavaScript; those that Python draws are others. */
  seed?: number;
  /** Texts that end what is generated, and are no part of it. */
  stop?: string[];
}

/** A token, and the text that became certain by it; the rest of a text has no token. */
export interface Piece {
  token: number | null;
  text: string;
}

/** What signature.json holds. */
export class Signature {
  /** Throws ConfigError, naming the place, for what no exporter writes. */
  constructor(value: unknown, where?: string);
  readonly name: string;
  readonly inputs: Input[];
  readonly tensors: TensorSpec[];
  readonly outputs: TensorSpec[];
  readonly maxBatch: number;
  readonly generation: Generation | null;
  /** Raw inputs as rows: rows by name, bare values of the one input, or columns. Throws ConfigError. */
  rows(values: readonly RawValue[] | readonly Row[] | Record<string, readonly RawValue[]>): Row[];
  /** The tensors of rows, by name. Throws ConfigError, naming row and input, for what cannot be one. */
  tensorsOf(rows: readonly Row[]): Record<string, TensorData>;
}

/** From the name of a file of a bundle to its bytes. */
export type ReadFile = (name: string) => Promise<Uint8Array>;

/** The module onnxruntime-web or onnxruntime-node. */
export interface Runtime {
  InferenceSession: { create(model: Uint8Array, options?: object): Promise<Session> };
  Tensor: new (type: any, data: any, dims: number[]) => any;
}

/** A session of ONNX Runtime. */
export interface Session {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  run(feeds: Record<string, any>): Promise<Record<string, any>>;
}

export interface LoadOptions {
  ort: Runtime;
  /** Of the graph: model.onnx by default; model.int8.onnx is smaller. */
  file?: string;
  /** Options of ONNX Runtime's session, such as executionProviders. */
  session?: object;
}

/** One row of an output: numbers by class where there are classes, else a number or nested lists. */
export type Answer = number | Record<string, number> | readonly Answer[];

/** A trained model that is verified: the hash of every file that is read, and the golden examples on this device. */
export class Bundle {
  /**
   * Loads a version folder from its URL, or by a function that reads its files.
   *
   * Throws ConfigError for what is no bundle or a newer format, and Damaged for a file that is not what was exported
   * and for a golden example whose outputs are others.
   */
  static load(source: string | URL | ReadFile, options: LoadOptions): Promise<Bundle>;
  readonly signature: Signature;
  readonly session: Session;
  readonly golden: { name: string; inputs: Row; outputs: Record<string, number[]> }[];
  /** The size of the graph. */
  readonly bytes: number;
  /** The largest difference of a golden example's output from the expected one, on this device. */
  readonly difference: number;
  /** The outputs by name, rows on dim 0, of raw inputs. Throws ConfigError, naming row and input. */
  predict(values: readonly RawValue[] | readonly Row[] | Record<string, readonly RawValue[]>): Promise<Record<string, TensorData>>;
  /** For each raw input, its outputs by name. */
  answers(values: readonly RawValue[] | readonly Row[] | Record<string, readonly RawValue[]>): Promise<Record<string, Answer>[]>;
  /** Whether `generate` works: for a language model with a cache, whose graphs could be made in ONNX. */
  readonly generates: boolean;
  /**
   * The text that follows a prompt, as it comes: a text, its bytes, or token ids. The first call loads the graphs and
   * computes the golden texts. Throws ConfigError for what does not fit, and Damaged as `load` does.
   */
  generate(prompt: string | Uint8Array | readonly number[], options?: GenerateOptions): AsyncGenerator<Piece, void>;
  /** The token ids of a prompt of `generate`. */
  tokensOf(prompt: string | Uint8Array | readonly number[]): number[];
  /** The outputs for tensors, at most `maxBatch` rows at a time. */
  run(tensors: Record<string, TensorData>): Promise<Record<string, TensorData>>;
}

/** A mistake in what was given: names the thing, the place and the nearest right name. */
export class ConfigError extends Error {}

/** A file that is not what was exported, or a runtime that computes something else. */
export class Damaged extends Error {
  constructor(file: string, why: string);
  readonly file: string;
  readonly why: string;
}

/** The newest format that is read. */
export const FORMAT: number;

/** A function from a text to its token ids, by the content of a tokenizer.json. Throws ConfigError for another kind. */
export function tokenizerOf(file: unknown, where?: string): (text: string) => number[];

/** A function from token ids to their text. */
export function decoderOf(file: any, where?: string): (ids: Iterable<number>) => string;

/** The value of JSON in which bytes are {"base64": …} and NaN is {"float": "nan"}. */
export function decoded(value: unknown): any;

/** The sha256 of bytes, 64 hexadecimal digits. */
export function sha256(bytes: Uint8Array): Promise<string>;
