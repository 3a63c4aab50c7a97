package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/validate"
)

// podCreateWarnings is silent on updates, as upstream: controllers make them, not people.
func podCreateWarnings(obj, old api.Object) []string {
	if old != nil {
		return nil
	}
	p := obj.(*corev1.Pod)
	w := &warner{}
	if m := validate.DNSLabel(p.Name); m != nil {
		w.say("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", m)
	}
	w.podSpec(nil, &p.Spec, &p.ObjectMeta)
	return w.said
}

func podStatusWarnings(obj, _ api.Object) []string {
	p := obj.(*corev1.Pod)
	w := &warner{}
	for i, ip := range p.Status.PodIPs {
		w.ip(statusPath.Child("podIPs").Index(i).Child("ip"), ip.IP)
	}
	for i, ip := range p.Status.HostIPs {
		w.ip(statusPath.Child("hostIPs").Index(i).Child("ip"), ip.IP)
	}
	return w.said
}

// PodTemplateWarnings is what upstream remarks on the template of a workload. path is
// where the template stands ("spec.template").
func PodTemplateWarnings(t *corev1.PodTemplateSpec, path *field.Path) []string {
	w := &warner{}
	w.podSpec(path, &t.Spec, &t.ObjectMeta)
	return w.said
}

// warner gathers warnings.
type warner struct {
	said []string
}

func (w *warner) say(format string, args ...any) {
	w.said = append(w.said, fmt.Sprintf(format, args...))
}

// ip remarks on addresses that are good but not in canonical form.
func (w *warner) ip(p *field.Path, ip string) {
	if len(content.IsValidIPForLegacyField(p, ip, false, nil)) == 0 {
		w.said = append(w.said, content.GetWarningsForIP(p, ip)...)
	}
}

// podSpec goes through a pod (root nil) or a template.
func (w *warner) podSpec(root *field.Path, s *corev1.PodSpec, meta *metav1.ObjectMeta) {
	spec := root.Child("spec")
	annotations := root.Child("metadata", "annotations")
	w.nodeLabels(spec, s)
	for i := range s.TopologySpreadConstraints {
		w.spread(&s.TopologySpreadConstraints[i], spec, i)
	}
	w.annotations(meta, annotations)
	for i := range s.Volumes {
		w.volume(&s.Volumes[i], spec, i)
	}
	w.tokenPaths(s, spec)
	w.duplicates(s, spec)
	w.fraction(s.Overhead, corev1.ResourceMemory, func() *field.Path { return spec.Child("overhead") })
	w.fraction(s.Overhead, corev1.ResourceEphemeralStorage, func() *field.Path { return spec.Child("overhead") })
	if s.SecurityContext == nil || s.SecurityContext.SeccompProfile == nil {
		w.oldAnnotation(meta, corev1.SeccompPodAnnotationKey, annotations, seccompAnnotationUnused)
	}
	eachContainerPath(s, spec, func(c *corev1.Container, at func() *field.Path) {
		w.container(c, at, root != nil, s, meta, annotations)
	})
	w.ports(s, spec)
	if g := s.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		w.say("%s: must be >= 0; negative values are invalid and will be treated as 1", spec.Child("terminationGracePeriodSeconds"))
	}
	w.affinity(s.Affinity, spec)
	if s.DNSConfig != nil {
		for i, ip := range s.DNSConfig.Nameservers {
			w.ip(spec.Child("dnsConfig", "nameservers").Index(i), ip)
		}
	}
	for i, a := range s.HostAliases {
		w.ip(spec.Child("hostAliases").Index(i).Child("ip"), a.IP)
	}
}

const (
	seccompAnnotationUnused  = `non-functional in v1.27+; use the "seccompProfile" field instead`
	appArmorAnnotationUnused = `deprecated since v1.30; use the "appArmorProfile" field instead`
)

// oldNodeLabels are labels of nodes that have got another name.
var oldNodeLabels = map[string]string{
	corev1.LabelFailureDomainBetaZone:   `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	corev1.LabelFailureDomainBetaRegion: `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	corev1.LabelInstanceType:            `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"beta.kubernetes.io/os":             `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"beta.kubernetes.io/arch":           `deprecated since v1.14; use "kubernetes.io/arch" instead`,
}

func (w *warner) nodeLabels(spec *field.Path, s *corev1.PodSpec) {
	for key := range s.NodeSelector {
		if m, old := oldNodeLabels[key]; old {
			w.say("%s: %s", spec.Child("nodeSelector").Key(key), m)
		}
	}
	if s.Affinity == nil || s.Affinity.NodeAffinity == nil {
		return
	}
	n, p := s.Affinity.NodeAffinity, spec.Child("affinity", "nodeAffinity")
	if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
		for i := range r.NodeSelectorTerms {
			w.nodeTerm(&r.NodeSelectorTerms[i], false, p.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms").Index(i))
		}
	}
	for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
		t := &n.PreferredDuringSchedulingIgnoredDuringExecution[i].Preference
		w.nodeTerm(t, true, p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("preference"))
	}
}

func (w *warner) nodeTerm(t *corev1.NodeSelectorTerm, values bool, p *field.Path) {
	for i, e := range t.MatchExpressions {
		at := p.Child("matchExpressions").Index(i)
		if m, old := oldNodeLabels[e.Key]; old {
			w.say("%s: %s is %s", at.Child("key"), e.Key, m)
		}
		for j, v := range e.Values {
			if !values {
				break
			}
			for _, m := range validate.LabelValue(v) {
				w.say("%s: %s is invalid, %s", at.Child("values").Index(j), v, m)
			}
		}
	}
}

const nullSelector = "%s: a null labelSelector results in matching no pod"

func (w *warner) spread(c *corev1.TopologySpreadConstraint, spec *field.Path, i int) {
	p := spec.Child("topologySpreadConstraints").Index(i)
	if m, old := oldNodeLabels[c.TopologyKey]; old {
		w.say("%s: %s is %s", p.Child("topologyKey"), c.TopologyKey, m)
	}
	if c.LabelSelector == nil {
		w.say(nullSelector, p.Child("labelSelector"))
	}
}

func (w *warner) annotations(meta *metav1.ObjectMeta, p *field.Path) {
	w.oldAnnotation(meta, "scheduler.alpha.kubernetes.io/critical-pod", p, `non-functional in v1.16+; use the "priorityClassName" field instead`)
	w.oldAnnotation(meta, "security.alpha.kubernetes.io/sysctls", p, `non-functional in v1.11+; use the "sysctls" field instead`)
	w.oldAnnotation(meta, "security.alpha.kubernetes.io/unsafe-sysctls", p, `non-functional in v1.11+; use the "sysctls" field instead`)
}

func (w *warner) oldAnnotation(meta *metav1.ObjectMeta, key string, p *field.Path, message string) {
	if _, ok := meta.Annotations[key]; ok {
		w.say("%s: %s", p.Key(key), message)
	}
}

func (w *warner) volume(v *corev1.Volume, spec *field.Path, i int) {
	for _, o := range []struct {
		set     bool
		name    string
		message string
	}{
		{v.PhotonPersistentDisk != nil, "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"},
		{v.GitRepo != nil, "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"},
		{v.ScaleIO != nil, "scaleIO", "deprecated in v1.16, non-functional in v1.22+"},
		{v.Flocker != nil, "flocker", "deprecated in v1.22, non-functional in v1.25+"},
		{v.StorageOS != nil, "storageOS", "deprecated in v1.22, non-functional in v1.25+"},
		{v.Quobyte != nil, "quobyte", "deprecated in v1.22, non-functional in v1.25+"},
		{v.Glusterfs != nil, "glusterfs", "deprecated in v1.25, non-functional in v1.26+"},
		{v.CephFS != nil, "cephfs", "deprecated in v1.28, non-functional in v1.31+"},
		{v.RBD != nil, "rbd", "deprecated in v1.28, non-functional in v1.31+"},
	} {
		if o.set {
			w.say("%s: %s", spec.Child("volumes").Index(i).Child(o.name), o.message)
		}
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		w.claim(&v.Ephemeral.VolumeClaimTemplate.Spec, spec.Child("volumes").Index(i).Child("ephemeral", "volumeClaimTemplate", "spec"))
	}
}

// claim remarks on sizes that are no whole bytes.
func (w *warner) claim(s *corev1.PersistentVolumeClaimSpec, p *field.Path) {
	w.fraction(s.Resources.Requests, corev1.ResourceStorage, func() *field.Path { return p.Child("resources", "requests") })
	w.fraction(s.Resources.Limits, corev1.ResourceStorage, func() *field.Path { return p.Child("resources", "limits") })
}

func (w *warner) fraction(l corev1.ResourceList, name corev1.ResourceName, p func() *field.Path) {
	if q, ok := l[name]; ok && q.MilliValue()%1000 != 0 {
		w.say("%s: fractional byte value %q is invalid, must be an integer", p().Key(string(name)), q.String())
	}
}

// tokenPaths remarks on files that hide a projected service account token, or are hidden by it.
func (w *warner) tokenPaths(s *corev1.PodSpec, spec *field.Path) {
	var tokens names
	for _, v := range s.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.ServiceAccountToken != nil {
				tokens.add(source.ServiceAccountToken.Path)
			}
		}
	}
	if tokens.n == 0 {
		return
	}
	for i := range s.Volumes {
		if s.Volumes[i].Projected == nil {
			continue
		}
		p := spec.Child("volumes").Index(i).Child("projected", "sources")
		for _, source := range s.Volumes[i].Projected.Sources {
			w.tokenPath(&source, &tokens, p)
		}
	}
}

func (w *warner) tokenPath(source *corev1.VolumeProjection, tokens *names, p *field.Path) {
	file := func(at *field.Path, path string) {
		if tokens.has(path) {
			w.say("%s: has duplicated path with ServiceAccountToken %q", at, path)
		}
	}
	if source.ConfigMap != nil {
		for j, item := range source.ConfigMap.Items {
			file(p.Child("configMap").Index(j), item.Path)
		}
	}
	if source.Secret != nil {
		for j, item := range source.Secret.Items {
			file(p.Child("secrets").Index(j), item.Path)
		}
	}
	if source.DownwardAPI != nil {
		for j, item := range source.DownwardAPI.Items {
			file(p.Child("downwardAPI").Index(j), item.Path)
		}
	}
	if source.ClusterTrustBundle != nil {
		file(p.Child("ClusterTrustBundle"), source.ClusterTrustBundle.Path)
	}
}

func (w *warner) duplicates(s *corev1.PodSpec, spec *field.Path) {
	var aliases, secrets names
	for i, a := range s.HostAliases {
		if aliases.add(a.IP) {
			w.say("%s: duplicate ip %q", spec.Child("hostAliases").Index(i).Child("ip"), a.IP)
		}
	}
	for i, n := range s.ImagePullSecrets {
		if secrets.add(n.Name) {
			w.say("%s: duplicate name %q", spec.Child("imagePullSecrets").Index(i).Child("name"), n.Name)
		}
	}
	for i, n := range s.ImagePullSecrets {
		if n.Name == "" {
			w.say("%s: invalid empty name %q", spec.Child("imagePullSecrets").Index(i).Child("name"), n.Name)
		}
	}
}

func (w *warner) container(c *corev1.Container, at func() *field.Path, template bool, s *corev1.PodSpec, meta *metav1.ObjectMeta, annotations *field.Path) {
	sc := c.SecurityContext
	if sc == nil || sc.SeccompProfile == nil {
		w.oldAnnotation(meta, corev1.SeccompContainerAnnotationKeyPrefix+c.Name, annotations, seccompAnnotationUnused)
	}
	key := corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + c.Name
	hasField := s.SecurityContext != nil && s.SecurityContext.AppArmorProfile != nil || sc != nil && sc.AppArmorProfile != nil
	if value, ok := meta.Annotations[key]; ok && (template && !hasField || !template && (appArmorProfile(value) == nil || hasField)) {
		// The annotation of a pod has been copied to the field by now (appArmorFields).
		w.oldAnnotation(meta, key, annotations, appArmorAnnotationUnused)
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		w.fraction(c.Resources.Limits, name, func() *field.Path { return at().Child("resources", "limits") })
		w.fraction(c.Resources.Requests, name, func() *field.Path { return at().Child("resources", "requests") })
	}
	var seen names
	for i := range c.Env {
		v := &c.Env[i]
		if !seen.add(v.Name) {
			continue
		}
		// A value that builds on the one before is meant so.
		ref := "$(" + v.Name + ")"
		if v.ValueFrom != nil || v.Value == ref || !strings.Contains(v.Value, ref) {
			w.say("%s: hides previous definition of %q, which may be dropped when using apply", at().Child("env").Index(i), v.Name)
		}
	}
}

// maxSamePorts is how many declarations of the same port the next one is compared with.
const maxSamePorts = 32

// ports remarks on ports that containers declare twice.
func (w *warner) ports(s *corev1.PodSpec, spec *field.Path) {
	type place struct {
		port *corev1.ContainerPort
		at   func() *field.Path
	}
	type number struct {
		port     int32
		protocol corev1.Protocol
	}
	before := map[number][]place{}
	eachContainerPath(s, spec, func(c *corev1.Container, at func() *field.Path) {
		for i := range c.Ports {
			p := place{&c.Ports[i], func() *field.Path { return at().Child("ports").Index(i) }}
			if p.port.HostIP != "" && p.port.HostPort == 0 {
				w.say("%s: hostIP set without hostPort: %+v", p.at(), *p.port)
			}
			n := number{p.port.ContainerPort, p.port.Protocol}
			for _, o := range before[n] {
				switch {
				case p.port.HostIP == o.port.HostIP && p.port.HostPort == o.port.HostPort:
					w.say("%s: duplicate port definition with %s", p.at(), o.at())
				case p.port.HostPort == 0 || o.port.HostPort == 0:
					w.say("%s: overlapping port definition with %s", p.at(), o.at())
				case p.port.HostPort == o.port.HostPort && (p.port.HostIP == "") != (o.port.HostIP == ""):
					w.say("%s: dangerously ambiguous port definition with %s", p.at(), o.at())
				}
			}
			if len(before[n]) < maxSamePorts {
				before[n] = append(before[n], p)
			}
		}
	})
}

func (w *warner) affinity(a *corev1.Affinity, spec *field.Path) {
	if a == nil {
		return
	}
	if t := a.PodAffinity; t != nil {
		w.affinityTerms(t.RequiredDuringSchedulingIgnoredDuringExecution, t.PreferredDuringSchedulingIgnoredDuringExecution, spec.Child("affinity", "podAffinity"))
	}
	if t := a.PodAntiAffinity; t != nil {
		w.affinityTerms(t.RequiredDuringSchedulingIgnoredDuringExecution, t.PreferredDuringSchedulingIgnoredDuringExecution, spec.Child("affinity", "podAntiAffinity"))
	}
}

func (w *warner) affinityTerms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, p *field.Path) {
	for i := range required {
		if required[i].LabelSelector == nil {
			w.say(nullSelector, p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i).Child("labelSelector"))
		}
	}
	for i := range preferred {
		if preferred[i].PodAffinityTerm.LabelSelector == nil {
			w.say(nullSelector, p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm", "labelSelector"))
		}
	}
}

// cidr is ip for address blocks.
func (w *warner) cidr(p *field.Path, cidr string) {
	if len(content.IsValidCIDRForLegacyField(p, cidr, false, nil)) == 0 {
		w.said = append(w.said, content.GetWarningsForCIDR(p, cidr)...)
	}
}
