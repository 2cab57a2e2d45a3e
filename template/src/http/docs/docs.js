// Shows the OpenAPI document. Text goes in as text nodes only, so that nothing in the document can become markup.

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

// `{"$ref": "#/components/schemas/Task"}` as what it points to.
function resolve(api, value) {
  if (!value?.$ref) return value;
  return value.$ref.slice(2).split("/").reduce((node, key) => node?.[key], api);
}

function type(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.oneOf || schema.anyOf) return (schema.oneOf ?? schema.anyOf).map(type).join(" | ");
  if (schema.items) return `list of ${type(schema.items)}`;
  const name = [schema.type].flat().join(" | ");
  return schema.format ? `${name} (${schema.format})` : name;
}

function fields(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const needed = schema.required?.includes(name) ? "required" : "";
    const cells = [element("code", name), type(field), needed, field.description ?? ""];
    return element("tr", ...cells.map((cell) => element("td", cell)));
  });
  return element("table", ...rows);
}

function body(api, content) {
  return Object.entries(content ?? {}).map(([media, { schema }]) =>
    element("div", element("p", element("code", media), ` ${type(schema)}`), fields(resolve(api, schema))));
}

function operation(api, path, method, { summary, parameters = [], requestBody, responses }) {
  const rows = parameters.map((one) =>
    element("tr", ...[element("code", one.name), one.in, type(one.schema), one.description ?? ""]
      .map((cell) => element("td", cell))));
  // All errors have one body: its fields are shown with the first of them.
  const shown = new Set();
  const answers = Object.entries(responses).map(([status, answer]) => {
    const kinds = JSON.stringify(answer.content);
    const parts = shown.has(kinds) ? [] : body(api, answer.content);
    shown.add(kinds);
    return element("div", element("p", element("b", status), ` ${answer.description}`), ...parts);
  });
  const title = element("summary", element("b", method.toUpperCase()), element("code", path), ` ${summary ?? ""}`);
  const parts = [title];
  if (rows.length) parts.push(element("h4", "Parameters"), element("table", ...rows));
  if (requestBody) parts.push(element("h4", "Body"), ...body(api, resolve(api, requestBody).content));
  return element("details", ...parts, element("h4", "Answers"), ...answers);
}

async function show() {
  const main = document.getElementById("api");
  const api = await (await fetch("openapi.json")).json();
  document.title = api.info.title;
  main.prepend(element("h1", `${api.info.title} ${api.info.version}`), element("p", api.info.description ?? ""));
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, one] of Object.entries(methods)) main.append(operation(api, path, method, one));
  }
}

show().catch((error) => document.getElementById("api").append(element("pre", String(error))));
