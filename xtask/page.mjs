// Runs the scripts of the page that shows the OpenAPI document, and checks that it then shows every operation, with all
// of its parameters and answers.
//
// node page.mjs <URL of the page>
import vm from "node:vm";

class Element {
  children = [];
  constructor(name) { this.name = name; }
  append(...children) { this.children.push(...children); }
  prepend(...children) { this.children.unshift(...children); }
  texts() { return this.children.flatMap((child) => child.texts?.() ?? String(child)); }
}

const load = (path) => fetch(new URL(path, process.argv[2]));
const page = await (await load("")).text();
const api = await (await load("openapi.json")).json();
const main = new Element("main");
const document = {
  createElement: (name) => new Element(name),
  getElementById: (id) => (page.includes(`<main id="${id}">`) ? main : null),
};
for (const [, script] of page.matchAll(/<script src="([^"]+)"/g)) {
  vm.runInNewContext(await (await load(script)).text(), { document, fetch: load });
}
// Once nothing is left to wait for.
process.on("beforeExit", () => {
  const shown = main.children.filter((child) => child.name === "details").map((child) => child.texts());
  const faults = main.texts().filter((text) => /^\w*Error:|undefined|\[object/.test(text));
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, { parameters = [], responses }] of Object.entries(methods)) {
      const texts = shown.find((texts) => texts[0] === method.toUpperCase() && texts[1] === path) ?? [];
      const parts = [path, ...parameters.map((one) => one.name), ...Object.keys(responses)];
      faults.push(...parts.filter((part) => !texts.includes(part)).map((part) => `${method} ${path} lacks ${part}`));
    }
  }
  console.log(faults.slice(0, 4).join("; ") || `${shown.length} operations`);
  process.exitCode = faults.length || !shown.length ? 1 : 0;
});
