// Validates resources of the Prometheus operator against its schemas: types, required fields and patterns. A field
// that they don't know passes.
//
// node operator.mjs <node_modules> <resource.json>...
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, ...files] = process.argv.slice(2);
const path = "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index.js";
const operator = await import(pathToFileURL(join(modules, path)).href);

for (const file of files) {
  const resource = JSON.parse(readFileSync(file, "utf8"));
  try {
    new operator[resource.kind](resource).validate();
  } catch (error) {
    console.error(`${resource.kind}: ${error.message}`);
    process.exitCode = 1;
  }
}
