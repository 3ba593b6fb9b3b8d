// The arrays that a graph takes and gives, as signature.json has them.

import { ConfigError, quoted, repr } from "./errors.js";
import { checkKeys, DTYPES, isFileName, isSize } from "./values.js";

/** The tensor of an object of signature.json, with the shape of a row. Throws ConfigError for what is none. */
export function tensorOf(value, where) {
  checkKeys(value, ["name", "dtype", "shape"], ["classes"], where);
  checkName(value.name, where);
  const { shape, dtype, classes = [] } = value;
  if (!(Array.isArray(shape) && shape[0] === "batch" && shape.slice(1).every(isSize))) {
    throw new ConfigError(`${where}.shape: ${repr(shape)} is not ['batch', sizes …]`);
  }
  if (!DTYPES.includes(dtype)) throw new ConfigError(`${where}.dtype: ${repr(dtype)} is none of ${DTYPES.join(", ")}`);
  if (!(Array.isArray(classes) && classes.every((each) => typeof each === "string"))) {
    throw new ConfigError(`${where}.classes: ${repr(classes)} are not texts`);
  }
  if (classes.length > 0 && !(shape.length === 2 && shape[1] === classes.length)) {
    throw new ConfigError(`${where}.classes: ${classes.length} names for an output of shape ${repr(shape)}`);
  }
  return { name: value.name, dtype, shape: shape.slice(1), classes };
}

/** Throws ConfigError for a name that no file could have. */
export function checkName(name, where) {
  if (typeof name !== "string") throw new ConfigError(`${where}: the name ${repr(name)} is no text`);
  if (!isFileName(name)) {
    const give = "give letters, digits, - and _, without / and \\";
    throw new ConfigError(`${where}: ${quoted(name)} is not a name: ${give}`);
  }
}
