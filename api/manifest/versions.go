package manifest

import "go.yaml.in/yaml/v3"

type versionedKind struct{ version, kind string }

// removal is what became of an API version of a kind.
type removal struct {
	in string // the release that no longer serves it
	to string // the version in its place, "" for none
	// instead says what to do where there is no successor.
	instead string
	// change brings the fields to the new version. The apiVersion is set already.
	change func(f *fixer, o object)
}

// removed is every kind of every API version that was served by default once and is no longer.
// https://kubernetes.io/docs/reference/using-api/deprecation-guide/
var removed = func() map[versionedKind]removal {
	m := map[versionedKind]removal{}
	add := func(in, from, to string, change func(*fixer, object), kinds ...string) {
		for _, k := range kinds {
			m[versionedKind{from, k}] = removal{in: in, to: to, change: change}
		}
	}
	gone := func(in, from, instead string, kinds ...string) {
		for _, k := range kinds {
			m[versionedKind{from, k}] = removal{in: in, instead: instead}
		}
	}
	add("v1.16", "extensions/v1beta1", "apps/v1", oldDeployment, "Deployment")
	add("v1.16", "extensions/v1beta1", "apps/v1", oldDaemonSet, "DaemonSet")
	add("v1.16", "extensions/v1beta1", "apps/v1", nil, "ReplicaSet")
	add("v1.16", "extensions/v1beta1", "networking.k8s.io/v1", nil, "NetworkPolicy")
	add("v1.16", "apps/v1beta1", "apps/v1", oldDeployment, "Deployment")
	add("v1.16", "apps/v1beta1", "apps/v1", oldStatefulSet, "StatefulSet")
	add("v1.16", "apps/v1beta1", "apps/v1", nil, "ControllerRevision")
	add("v1.16", "apps/v1beta2", "apps/v1", nil, "Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "ControllerRevision")
	add("v1.22", "extensions/v1beta1", "networking.k8s.io/v1", ingress, "Ingress")
	add("v1.22", "networking.k8s.io/v1beta1", "networking.k8s.io/v1", ingress, "Ingress")
	add("v1.22", "networking.k8s.io/v1beta1", "networking.k8s.io/v1", nil, "IngressClass")
	for _, v := range []string{"v1alpha1", "v1beta1"} {
		add("v1.22", "rbac.authorization.k8s.io/"+v, "rbac.authorization.k8s.io/v1", nil, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
		add("v1.22", "scheduling.k8s.io/"+v, "scheduling.k8s.io/v1", nil, "PriorityClass")
	}
	add("v1.22", "storage.k8s.io/v1beta1", "storage.k8s.io/v1", nil, "CSIDriver", "CSINode", "StorageClass", "VolumeAttachment")
	add("v1.27", "storage.k8s.io/v1beta1", "storage.k8s.io/v1", nil, "CSIStorageCapacity")
	add("v1.22", "apiregistration.k8s.io/v1beta1", "apiregistration.k8s.io/v1", nil, "APIService")
	add("v1.22", "apiextensions.k8s.io/v1beta1", "apiextensions.k8s.io/v1", nil, "CustomResourceDefinition")
	add("v1.22", "admissionregistration.k8s.io/v1beta1", "admissionregistration.k8s.io/v1", webhooks, "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
	add("v1.22", "certificates.k8s.io/v1beta1", "certificates.k8s.io/v1", signingRequest, "CertificateSigningRequest")
	add("v1.22", "coordination.k8s.io/v1beta1", "coordination.k8s.io/v1", nil, "Lease")
	add("v1.22", "authentication.k8s.io/v1beta1", "authentication.k8s.io/v1", nil, "TokenReview")
	add("v1.22", "authorization.k8s.io/v1beta1", "authorization.k8s.io/v1", nil, "SubjectAccessReview", "LocalSubjectAccessReview", "SelfSubjectAccessReview")
	for _, v := range []string{"v1beta1", "v2alpha1"} {
		add("v1.25", "batch/"+v, "batch/v1", nil, "CronJob")
	}
	add("v1.25", "policy/v1beta1", "policy/v1", disruptionBudget, "PodDisruptionBudget")
	add("v1.25", "discovery.k8s.io/v1beta1", "discovery.k8s.io/v1", endpointSlice, "EndpointSlice")
	add("v1.25", "events.k8s.io/v1beta1", "events.k8s.io/v1", nil, "Event")
	add("v1.25", "node.k8s.io/v1beta1", "node.k8s.io/v1", nil, "RuntimeClass")
	add("v1.22", "node.k8s.io/v1alpha1", "node.k8s.io/v1", runtimeClass, "RuntimeClass")
	add("v1.25", "autoscaling/v2beta1", "autoscaling/v2", autoscaler, "HorizontalPodAutoscaler")
	add("v1.26", "autoscaling/v2beta2", "autoscaling/v2", nil, "HorizontalPodAutoscaler")
	for v, in := range map[string]string{"v1alpha1": "v1.24", "v1beta1": "v1.26", "v1beta2": "v1.29"} {
		add(in, "flowcontrol.apiserver.k8s.io/"+v, "flowcontrol.apiserver.k8s.io/v1", shares, "PriorityLevelConfiguration")
		add(in, "flowcontrol.apiserver.k8s.io/"+v, "flowcontrol.apiserver.k8s.io/v1", nil, "FlowSchema")
	}
	add("v1.32", "flowcontrol.apiserver.k8s.io/v1beta3", "flowcontrol.apiserver.k8s.io/v1", nil, "PriorityLevelConfiguration", "FlowSchema")
	const podSecurity = "label the namespaces with pod-security.kubernetes.io/enforce instead"
	gone("v1.25", "policy/v1beta1", podSecurity, "PodSecurityPolicy")
	gone("v1.16", "extensions/v1beta1", podSecurity, "PodSecurityPolicy")
	gone("v1.25", "settings.k8s.io/v1alpha1", "write its values into the pod templates", "PodPreset")
	gone("v1.16", "auditregistration.k8s.io/v1alpha1", "give the server an audit webhook configuration", "AuditSink")
	return m
}()

// oldDeployment: extensions/v1beta1 and apps/v1beta1.
func oldDeployment(f *fixer, o object) {
	spec := o.at("spec")
	if n := spec.take("rollbackTo"); n != nil {
		f.fixed(n, "spec.rollbackTo is gone: `kubectl rollout undo` goes back to an earlier revision")
	}
	if o.at("spec").get("progressDeadlineSeconds") == nil {
		f.remark(o.get("apiVersion"), "spec.progressDeadlineSeconds is 600 now where it is not set")
	}
}

// oldDaemonSet: extensions/v1beta1.
func oldDaemonSet(f *fixer, o object) {
	if n := o.at("spec").take("templateGeneration"); n != nil {
		f.fixed(n, "spec.templateGeneration is gone")
	}
	f.keepOnDelete(o)
}

// oldStatefulSet: apps/v1beta1.
func oldStatefulSet(f *fixer, o object) { f.keepOnDelete(o) }

// keepOnDelete keeps the update strategy that the old version had by default.
func (f *fixer) keepOnDelete(o object) {
	spec := o.at("spec")
	if spec.Node == nil || spec.has("updateStrategy") {
		return
	}
	spec.put("updateStrategy", mapping("type", scalar("OnDelete")))
	f.fixed(spec.Node, "spec.updateStrategy is set to OnDelete, which the old version had by default; the new one has RollingUpdate")
}

// ingress: networking.k8s.io/v1beta1 and extensions/v1beta1.
func ingress(f *fixer, o object) {
	spec := o.at("spec")
	if n := spec.get("backend"); n != nil {
		spec.rename("backend", "defaultBackend")
		f.fixed(n, "spec.backend is spec.defaultBackend now")
		f.backend(object{n})
	}
	for _, rule := range spec.list("rules") {
		for _, path := range (object{rule}).at("http").list("paths") {
			p := object{path}
			if !p.has("pathType") {
				p.set("pathType", "ImplementationSpecific")
				f.fixed(path, "pathType is required: ImplementationSpecific is how the old version behaved")
			}
			f.backend(p.at("backend"))
		}
	}
}

// backend brings serviceName and servicePort to the new form.
func (f *fixer) backend(b object) {
	name, port := b.get("serviceName"), b.get("servicePort")
	if name == nil {
		return
	}
	b.take("serviceName")
	b.take("servicePort")
	service := mapping("name", clone(name))
	if port != nil {
		key := "name"
		if isNumber(port) {
			key = "number"
		}
		service.Content = append(service.Content, scalar("port"), mapping(key, clone(port)))
	}
	b.put("service", service)
	f.fixed(name, "serviceName and servicePort are service.name and service.port now")
}

// webhooks: admissionregistration.k8s.io/v1beta1. What had a default there and has another or none in v1 is written out.
func webhooks(f *fixer, o object) {
	for _, n := range o.list("webhooks") {
		w := object{n}
		defaults := []struct {
			key   string
			value *yaml.Node
			why   string
		}{
			{"admissionReviewVersions", texts("v1beta1"), "is required; the webhook was sent v1beta1 so far: put v1 in front if it understands that"},
			{"sideEffects", scalar("NoneOnDryRun"), "is required; NoneOnDryRun means that dry runs are sent as such: write None if it has no side effects"},
			{"failurePolicy", scalar("Ignore"), "is written out, since its default is Fail now"},
			{"matchPolicy", scalar("Exact"), "is written out, since its default is Equivalent now"},
			{"timeoutSeconds", plain("30", "!!int"), "is written out, since its default is 10 now"},
		}
		for _, d := range defaults {
			if d.key == "sideEffects" && (w.text(d.key) == "Unknown" || w.text(d.key) == "Some") {
				w.take(d.key)
			}
			if !w.has(d.key) {
				w.put(d.key, d.value)
				f.fixed(n, "webhooks[%s].%s %s", w.text("name"), d.key, d.why)
			}
		}
	}
}

// signingRequest: certificates.k8s.io/v1beta1, where the signer could be left out.
func signingRequest(f *fixer, o object) {
	spec := o.at("spec")
	if spec.Node == nil || spec.has("signerName") {
		return
	}
	for _, u := range spec.list("usages") {
		if u.Value == "client auth" {
			spec.set("signerName", "kubernetes.io/kube-apiserver-client")
			f.fixed(spec.Node, "spec.signerName is required: kubernetes.io/kube-apiserver-client signs for clients")
			return
		}
	}
	f.open(spec.Node, "spec.signerName is required: no signer of Kubernetes signs for these usages")
}

// disruptionBudget: policy/v1beta1, where an empty selector chose nothing.
func disruptionBudget(f *fixer, o object) {
	if s := o.at("spec").at("selector"); s.Node != nil && len(s.Content) == 0 {
		o.at("spec").take("selector")
		f.fixed(s.Node, "the empty spec.selector is taken out: it selects every pod of the namespace now, and selected none before")
	}
}

// endpointSlice: discovery.k8s.io/v1beta1.
func endpointSlice(f *fixer, o object) {
	for _, n := range o.list("endpoints") {
		e := object{n}
		topology := e.at("topology")
		if topology.Node == nil {
			continue
		}
		e.take("topology")
		if zone := topology.text("topology.kubernetes.io/zone"); zone != "" {
			e.set("zone", zone)
		}
		if host := topology.text("kubernetes.io/hostname"); host != "" && !e.has("nodeName") {
			e.set("nodeName", host)
		}
		f.fixed(topology.Node, "endpoints[].topology is gone: zone and nodeName hold what is read of it")
	}
}

// runtimeClass: node.k8s.io/v1alpha1.
func runtimeClass(f *fixer, o object) {
	spec := o.take("spec")
	if spec == nil {
		return
	}
	s := object{spec}
	for _, key := range [][2]string{{"runtimeHandler", "handler"}, {"overhead", "overhead"}, {"scheduling", "scheduling"}} {
		if v := s.get(key[0]); v != nil {
			o.put(key[1], v)
		}
	}
	f.fixed(spec, "spec.runtimeHandler is handler now, and spec is gone")
}

// shares: flowcontrol.apiserver.k8s.io before v1beta3.
func shares(f *fixer, o object) {
	limited := o.at("spec").at("limited")
	if n := limited.get("assuredConcurrencyShares"); n != nil {
		limited.rename("assuredConcurrencyShares", "nominalConcurrencyShares")
		f.fixed(n, "assuredConcurrencyShares is nominalConcurrencyShares now")
	}
}

// autoscaler: autoscaling/v2beta1, whose metrics had a field for each kind of target.
func autoscaler(f *fixer, o object) {
	for _, n := range o.at("spec").list("metrics") {
		source := lowerFirst((object{n}).text("type"))
		m := (object{n}).at(source)
		if m.Node == nil || m.has("target") && source != "object" {
			continue
		}
		before := len(f.notes)
		switch source {
		case "object":
			if d := m.at("target"); d.Node != nil && !m.has("describedObject") {
				m.rename("target", "describedObject")
			}
		}
		f.metricName(m)
		for _, t := range []struct{ key, kind, field string }{
			{"targetAverageUtilization", "Utilization", "averageUtilization"},
			{"targetAverageValue", "AverageValue", "averageValue"},
			{"averageValue", "AverageValue", "averageValue"},
			{"targetValue", "Value", "value"},
		} {
			v := m.take(t.key)
			if v == nil {
				continue
			}
			m.put("target", mapping("type", scalar(t.kind), t.field, clone(v)))
			f.fixed(v, "%s is target.%s now", t.key, t.field)
			break
		}
		if len(f.notes) == before {
			f.open(n, "the metric has no target that could be read")
		}
	}
}

// metricName moves metricName and a selector below metric.
func (f *fixer) metricName(m object) {
	name := m.take("metricName")
	if name == nil {
		return
	}
	metric := mapping("name", clone(name))
	for _, key := range []string{"selector", "metricSelector"} {
		if s := m.take(key); s != nil {
			metric.Content = append(metric.Content, scalar("selector"), s)
		}
	}
	m.put("metric", metric)
	f.fixed(name, "metricName is metric.name now")
}
