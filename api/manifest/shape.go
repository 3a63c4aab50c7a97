package manifest

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// selector gives a workload of the apps group the selector that its template's labels stand for.
func (f *fixer) selector(o object) {
	spec := o.at("spec")
	template := spec.at("template")
	if spec.Node == nil || template.Node == nil {
		return
	}
	labels := template.at("metadata").at("labels")
	if labels.Node == nil || len(labels.Content) == 0 {
		if spec.has("selector") || o.at("metadata").text("name") == "" {
			return
		}
		template.need("metadata").put("labels", mapping("app", scalar(o.at("metadata").text("name"))))
		labels = template.at("metadata").at("labels")
		f.fixed(template.Node, "spec.template.metadata.labels is required: app: %s", o.at("metadata").text("name"))
	}
	if spec.has("selector") {
		return
	}
	at := spec.get("template")
	match := mapping("matchLabels", clone(labels.Node))
	i := spec.index("template") - 1
	rest := append([]*yaml.Node{scalar("selector"), match}, spec.Content[i:]...)
	spec.take("selector")
	spec.Content = append(spec.Content[:i:i], rest...)
	f.fixed(at, "spec.selector is required: it is the template's labels, as the old versions made it")
}

// jobTemplate gives the pods of a job a restart policy.
func (f *fixer) jobTemplate(spec object, o object) {
	if spec.Node == nil {
		return
	}
	switch was := spec.text("restartPolicy"); was {
	case "":
		spec.set("restartPolicy", "Never")
		f.fixed(spec.Node, `restartPolicy is required for the pods of a %s: Never leaves a failed pod for its logs ("OnFailure" would start it again in place)`, o.text("kind"))
	case "Always":
		at := spec.get("restartPolicy")
		spec.set("restartPolicy", "OnFailure")
		f.fixed(at, "restartPolicy Always is refused for the pods of a %s: OnFailure starts them again until they succeed", o.text("kind"))
	}
}

// claim gives a volume claim access modes.
func (f *fixer) claim(o object) {
	spec := o.at("spec")
	if spec.Node == nil {
		return
	}
	if len(spec.list("accessModes")) == 0 {
		spec.put("accessModes", texts("ReadWriteOnce"))
		f.fixed(spec.Node, "accessModes is required for a volume claim: ReadWriteOnce lets one node write")
	}
	if resources := spec.at("resources"); resources.at("requests").text("storage") == "" {
		f.open(spec.Node, "resources.requests.storage is required for a volume claim: say how much it needs, for example 1Gi")
	}
}

// podSpec finds the pod spec of a workload or pod.
func podSpec(o object) object {
	group, _, _ := strings.Cut(o.text("apiVersion"), "/")
	switch group + "/" + o.text("kind") {
	case "v1/Pod":
		return o.at("spec")
	case "v1/PodTemplate":
		return o.at("template").at("spec")
	case "batch/CronJob":
		return o.at("spec").at("jobTemplate").at("spec").at("template").at("spec")
	case "apps/Deployment", "apps/ReplicaSet", "apps/DaemonSet", "apps/StatefulSet", "batch/Job", "v1/ReplicationController":
		return o.at("spec").at("template").at("spec")
	}
	return object{}
}

// podMetadata finds the metadata beside a pod spec.
func podMetadata(o object) object {
	switch o.text("kind") {
	case "Pod":
		return o.at("metadata")
	case "PodTemplate":
		return o.at("template").at("metadata")
	case "CronJob":
		return o.at("spec").at("jobTemplate").at("spec").at("template").at("metadata")
	}
	return o.at("spec").at("template").at("metadata")
}

// pod fixes what is below a pod spec: values of variables that are no strings, and annotations that became fields.
func (f *fixer) pod(o, spec object) {
	for _, key := range []string{"containers", "initContainers", "ephemeralContainers"} {
		for _, c := range spec.list(key) {
			for _, e := range (object{c}).list("env") {
				f.quote(object{e}, "value", fmt.Sprintf("the value of the variable %s", (object{e}).text("name")))
			}
			for _, list := range []string{"args", "command"} {
				for i, a := range (object{c}).list(list) {
					f.quoteNode(a, fmt.Sprintf("%s[%d]", list, i))
				}
			}
		}
	}
	annotations := podMetadata(o).at("annotations")
	const seccomp = "seccomp.security.alpha.kubernetes.io/pod"
	if v := annotations.get(seccomp); v != nil {
		if profile := seccompProfile(v.Value); profile != nil {
			annotations.take(seccomp)
			spec.need("securityContext").put("seccompProfile", profile)
			f.fixed(v, "the annotation %s is no longer read since v1.27: securityContext.seccompProfile says the same", seccomp)
		}
	}
	const apparmor = "container.apparmor.security.beta.kubernetes.io/"
	for _, key := range annotations.keys() {
		container, ok := strings.CutPrefix(key, apparmor)
		if !ok {
			continue
		}
		v := annotations.get(key)
		if c := containerNamed(spec, container); c.Node != nil && v != nil {
			if profile := apparmorProfile(v.Value); profile != nil && !c.at("securityContext").has("appArmorProfile") {
				annotations.take(key)
				c.need("securityContext").put("appArmorProfile", profile)
				f.fixed(v, "the annotation %s is deprecated since v1.30: securityContext.appArmorProfile says the same", key)
			}
		}
	}
}

func containerNamed(spec object, name string) object {
	for _, key := range []string{"containers", "initContainers"} {
		for _, c := range spec.list(key) {
			if (object{c}).text("name") == name {
				return object{c}
			}
		}
	}
	return object{}
}

func seccompProfile(v string) *yaml.Node {
	switch {
	case v == "runtime/default" || v == "docker/default":
		return mapping("type", scalar("RuntimeDefault"))
	case v == "unconfined":
		return mapping("type", scalar("Unconfined"))
	case strings.HasPrefix(v, "localhost/"):
		return mapping("type", scalar("Localhost"), "localhostProfile", scalar(strings.TrimPrefix(v, "localhost/")))
	}
	return nil
}

func apparmorProfile(v string) *yaml.Node {
	if v == "runtime/default" {
		return mapping("type", scalar("RuntimeDefault"))
	}
	return seccompProfile(v)
}

// strings quotes values that have to be strings and were written as numbers or booleans.
func (f *fixer) strings(o object) {
	f.stringMaps(o.at("metadata"))
	switch o.text("kind") {
	case "ConfigMap":
		f.quoteAll(o.at("data"), "data")
	case "Secret":
		f.quoteAll(o.at("stringData"), "stringData")
	}
	if spec := podSpec(o); spec.Node != nil {
		if o.text("kind") != "Pod" {
			f.stringMaps(podMetadata(o))
		}
		f.quoteAll(spec.at("nodeSelector"), "nodeSelector")
	}
	spec := o.at("spec")
	if o.text("kind") == "Service" {
		f.quoteAll(spec.at("selector"), "spec.selector")
	}
	f.quoteAll(spec.at("selector").at("matchLabels"), "spec.selector.matchLabels")
}

func (f *fixer) stringMaps(metadata object) {
	f.quoteAll(metadata.at("labels"), "labels")
	f.quoteAll(metadata.at("annotations"), "annotations")
}

func (f *fixer) quoteAll(m object, where string) {
	for _, key := range m.keys() {
		f.quote(m, key, fmt.Sprintf("%s[%s]", where, key))
	}
}

// quote makes the value of a key a string.
func (f *fixer) quote(o object, key, what string) {
	if n := o.get(key); n != nil {
		f.quoteNode(n, what)
	}
}

func (f *fixer) quoteNode(n *yaml.Node, what string) {
	if n.Kind != yaml.ScalarNode {
		return
	}
	switch n.ShortTag() {
	case "!!int", "!!float", "!!bool", "!!timestamp":
		n.Tag, n.Style = "!!str", yaml.DoubleQuotedStyle
		f.fixed(n, "%s has to be a string: %s is put in quotes", what, n.Value)
	}
}
