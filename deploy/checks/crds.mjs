// Validates what is no part of Kubernetes itself: ScaledObject, PodMonitor, PrometheusRule, by their published schemas.
//
// In: a JSON array of objects on standard input. Out: a line for each that is wrong, and for each kind nobody knows. Runs in the folder
// that has the schemas' packages: deploy/check copies it there.

import { readFileSync } from "node:fs";

const packages = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
};

let wrong = 0;
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const name = `${object.kind} ${object.metadata?.name}`;
  try {
    const models = packages[object.apiVersion];
    if (!models) throw new Error(`no schema for ${object.apiVersion}`);
    const model = await import(`${models}/${object.apiVersion}/${object.kind}`);
    new model[object.kind](object).validate();
  } catch (error) {
    wrong += 1;
    console.error(`${name}: ${error.message}`);
  }
}
process.exit(wrong === 0 ? 0 : 1);
