// Validates what is no part of Kubernetes itself: Gateway, HTTPRoute, ScaledObject, PodMonitor, PrometheusRule, by their published schemas.
//
// In: a JSON array of objects on standard input. Out: a line for each that is wrong, and for each kind nobody knows. Runs in the folder
// that has the schemas' packages: deploy/check copies it there.
//
// The schemas allow fields that they do not name, which the API server drops: a misspelt field would have no effect. So the objects record
// which fields their schema reads, and a field that was not read is wrong.

import { readFileSync } from "node:fs";

const packages = {
  "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api",
  "keda.sh/v1alpha1": "@kubernetes-models/keda",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
};

// Returns an object or array that records the paths of the fields that are read.
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

// Returns the paths of the fields that were not read. Fields below one are left out.
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
    // Only now: the model copies what it is made of.
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
