// Validates custom resources (Gateway, HTTPRoute, ScaledObject, PodMonitor, PrometheusRule) against their published schemas.
//
// Reads a JSON array of objects from standard input. Prints one line per invalid object or unknown kind, and then exits with 1.
// deploy/check copies the script to the folder with the packages of the schemas.
//
// The schemas allow unknown fields, which the API server drops, so a misspelt field would have no effect. So the script records
// which fields a schema reads, and reports the others as errors.

import { readFileSync } from "node:fs";

const packages = {
  "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api",
  "keda.sh/v1alpha1": "@kubernetes-models/keda",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
};

// Returns a proxy of an object or array that adds the paths of fields that are read to `read`.
function recording(value, path, read) {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      if (typeof key !== "string" || !Object.hasOwn(target, key)) return Reflect.get(target, key);
      read.add(`${path}.${key}`);
      return recording(target[key], `${path}.${key}`, read);
    },
  });
}

// Returns the paths of fields that were not read, without the fields inside them.
function unread(value, path, read) {
  if (value === null || typeof value !== "object") return [];
  return Object.keys(value).flatMap((key) => {
    const field = `${path}.${key}`;
    return read.has(field) ? unread(value[key], field, read) : [field];
  });
}

const known = new Set(["apiVersion", "kind", "metadata", "spec"]);
let wrong = 0;
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const name = `${object.kind} ${object.metadata?.name}`;
  try {
    const models = packages[object.apiVersion];
    if (!models) throw new Error(`no schema for ${object.apiVersion}`);
    const model = await import(`${models}/${object.apiVersion}/${object.kind}`);
    const checked = new model[object.kind](object);
    // After the constructor, because it copies the object.
    const read = new Set();
    for (const key of Object.keys(object)) checked[key] = recording(object[key], `.${key}`, read);
    checked.validate();
    const unknown = Object.keys(object).flatMap((key) =>
      known.has(key) ? unread(object[key], `.${key}`, read) : [`.${key}`],
    );
    if (unknown.length > 0) throw new Error(`fields that its schema does not have: ${unknown.join(", ")}`);
  } catch (error) {
    wrong += 1;
    console.error(`${name}: ${error.message}`);
  }
}
process.exit(wrong === 0 ? 0 : 1);
