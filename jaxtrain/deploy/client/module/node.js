// Reads a bundle's folder in Node.

import { webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { ConfigError } from "./errors.js";

globalThis.crypto ??= webcrypto; // some builds of Node have none, and files are verified by it

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
