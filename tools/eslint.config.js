// Rules for all JavaScript of the repository: `npm run --prefix tools lint` checks them, and the format.

import js from "@eslint/js";
import jsdoc from "eslint-plugin-jsdoc";
import globals from "globals";

const RULES = {
  eqeqeq: "error",
  "max-statements-per-line": ["error", { max: 1 }],
  "no-sequences": "error",
  "no-shadow": "error",
  "no-unused-vars": ["error", { ignoreRestSiblings: true, argsIgnorePattern: "^_" }],
  "no-var": "error",
  "object-shorthand": "error",
  "one-var": ["error", "never"],
  "prefer-const": ["error", { destructuring: "all" }],
};
const TYPES = {
  "jsdoc/require-jsdoc": ["error", { publicOnly: true, require: { ArrowFunctionExpression: true } }],
  "jsdoc/reject-any-type": "off", // of arrays and words that Python names
};

export default [
  { ignores: ["**/node_modules/", "**/build/", "**/.venv/"] },
  js.configs.recommended,
  { languageOptions: { globals: { ...globals.browser, ...globals.worker } }, rules: RULES },
  { files: ["moe_lessons/**"], ...jsdoc.configs["flat/recommended-typescript-flavor-error"] },
  { files: ["moe_lessons/**"], rules: TYPES },
];
