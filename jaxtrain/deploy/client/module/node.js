// Reads a bundle's folder in Node.

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { ConfigError } from "./errors.js";

/** What `Bundle.load` reads the files of this folder with. */
export function folder(path) {
  return async (name) => {
    try {
      return new Uint8Array(await readFile(join(path, name)));
    } catch (error) {
      throw new ConfigError(`${join(path, name)} cannot be read: ${error.code ?? error.message}`);
    }
  };
}
