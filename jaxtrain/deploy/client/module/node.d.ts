import type { ReadFile } from "./index.js";

/** What `Bundle.load` reads the files of this folder with. */
export function folder(path: string): ReadFile;
