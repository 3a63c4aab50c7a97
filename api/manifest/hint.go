package manifest

import "strings"

// command is how a user gets a manifest fixed.
const command = "`coracle fix -f FILE` writes it as it is accepted"

// Hint is what to tell the author of an object of a kind that was refused with those words, "" if the cause is none that Fix
// knows.
func Hint(kind, refusal string) string {
	for _, h := range hints {
		if h.kinds[kind] && strings.Contains(refusal, h.words) {
			return h.hint + "; " + command
		}
	}
	return ""
}

var hints = func() []hint {
	of := func(kinds ...string) map[string]bool {
		m := map[string]bool{}
		for _, k := range kinds {
			m[k] = true
		}
		return m
	}
	return []hint{
		{of("Job", "CronJob"), "restartPolicy", "the pods of a job need restartPolicy: Never or OnFailure"},
		{of("PersistentVolumeClaim", "StatefulSet"), "accessModes: Required", "a volume claim needs accessModes, for example [ReadWriteOnce]"},
		{of("Deployment", "ReplicaSet", "DaemonSet", "StatefulSet"), "spec.selector: Required", "apps/v1 needs spec.selector, which the versions before it took from the template's labels"},
		{of("CustomResourceDefinition"), "spec.versions: Required", "apiextensions.k8s.io/v1 has spec.versions, each with a schema, where the versions before it had spec.version and spec.validation"},
		{of("CustomResourceDefinition"), `unknown field "spec.version"`, "apiextensions.k8s.io/v1 has spec.versions where the versions before it had spec.version"},
		{of("CustomResourceDefinition"), `unknown field "spec.validation"`, "apiextensions.k8s.io/v1 has a schema for each version where the versions before it had spec.validation"},
		{of("CustomResourceDefinition"), "schemas are required", "apiextensions.k8s.io/v1 needs a schema for each version"},
		{of("CustomResourceDefinition"), "must not be empty for specified object fields", "the schema needs a type at each level"},
		{of("Ingress"), "pathType", "networking.k8s.io/v1 needs a pathType for each path"},
		{of("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"), "sideEffects: Required", "admissionregistration.k8s.io/v1 needs sideEffects and admissionReviewVersions"},
	}
}()

type hint struct {
	kinds map[string]bool
	words string
	hint  string
}

// Removed is what to tell a client that asks for a resource of an API version that is gone, "" if it never was or still is.
func Removed(groupVersion, resource string) string {
	for k, r := range removed {
		stem := strings.ToLower(k.kind[:len(k.kind)-1])
		if k.version != groupVersion || !strings.HasPrefix(resource, stem) || len(resource) > len(stem)+4 {
			continue
		}
		if r.to == "" {
			return groupVersion + " " + k.kind + " was removed in " + r.in + ": " + r.instead
		}
		return groupVersion + " " + k.kind + " was removed in " + r.in + ": " + r.to + " takes its place; " + command
	}
	return ""
}
