package core

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// Places that many rules start from. Paths are immutable.
var (
	metadataPath    = field.NewPath("metadata")
	annotationsPath = metadataPath.Child("annotations")
	specPath        = field.NewPath("spec")
	statusPath      = field.NewPath("status")
)

// ValidatePod checks a new pod.
func ValidatePod(p *corev1.Pod) field.ErrorList {
	r := &report{}
	podRules(r, p)
	if len(p.Spec.EphemeralContainers) > 0 {
		r.forbidden(specPath.Child("ephemeralContainers"), "cannot be set on create")
	}
	if p.Spec.NodeName != "" && len(p.Spec.SchedulingGates) > 0 {
		r.forbidden(specPath.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	profileAnnotationsMatch(r, &p.ObjectMeta, &p.Spec, specPath)
	return r.errs
}

// podRules are what holds of a pod at any time.
func podRules(r *report, p *corev1.Pod) {
	podAnnotations(r, p.Annotations, &p.Spec, annotationsPath)
	c := newPodCheck(r, &p.Spec, &p.ObjectMeta, true)
	c.spec(specPath)
	if p.Spec.ServiceAccountName == "" {
		noTokens(r, p.Spec.Volumes)
	}
	for i := range p.Spec.Containers {
		imagePadding(r, p.Spec.Containers[i].Image, specPath.Child("containers"), i)
	}
	for i := range p.Spec.InitContainers {
		imagePadding(r, p.Spec.InitContainers[i].Image, specPath.Child("initContainers"), i)
	}
}

// noTokens refuses projected tokens in a pod without a service account.
func noTokens(r *report, volumes []corev1.Volume) {
	for i := range volumes {
		if volumes[i].Projected == nil {
			continue
		}
		for j := range volumes[i].Projected.Sources {
			if volumes[i].Projected.Sources[j].ServiceAccountToken != nil {
				p := specPath.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken")
				r.forbidden(p, "must not be specified when serviceAccountName is not set")
			}
		}
	}
}

func imagePadding(r *report, image string, list *field.Path, i int) {
	if len(strings.TrimSpace(image)) != len(image) {
		r.invalid(list.Index(i).Child("image"), image, "must not have leading or trailing whitespace")
	}
}

// ValidatePodTemplateSpec checks the template of a workload.
func ValidatePodTemplateSpec(t *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	r := &report{}
	r.add(validate.Labels(t.Labels, path.Child("labels")))
	r.add(validate.Annotations(t.Annotations, path.Child("annotations")))
	podAnnotations(r, t.Annotations, &t.Spec, path.Child("annotations"))
	spec := path.Child("spec")
	newPodCheck(r, &t.Spec, nil, false).spec(spec)
	profileAnnotationsMatch(r, &t.ObjectMeta, &t.Spec, spec)
	if len(t.Spec.EphemeralContainers) > 0 {
		r.forbidden(spec.Child("ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
	return r.errs
}

// ValidatePodTemplateSpecUpdate checks a changed template: templates may change freely, so it
// is what ValidatePodTemplateSpec says of the new one.
func ValidatePodTemplateSpecUpdate(t, _ *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	return ValidatePodTemplateSpec(t, path)
}

// ValidatePodSpec checks a pod spec that is embedded in another object. meta is the metadata of the
// pod, nil for a template.
func ValidatePodSpec(s *corev1.PodSpec, meta *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	r := &report{}
	newPodCheck(r, s, meta, false).spec(path)
	return r.errs
}

// podCheck goes through one pod spec.
type podCheck struct {
	*report
	s         *corev1.PodSpec
	meta      *metav1.ObjectMeta // nil in templates
	pod       bool               // a pod, not a template
	hostUsers bool               // the pod shares the user namespace of its node
	volumes   map[string]*corev1.VolumeSource
	taken     names // names of containers
}

func newPodCheck(r *report, s *corev1.PodSpec, meta *metav1.ObjectMeta, pod bool) *podCheck {
	return &podCheck{report: r, s: s, meta: meta, pod: pod, hostUsers: s.HostUsers == nil || *s.HostUsers}
}

// spec checks everything, in upstream's order.
func (c *podCheck) spec(p *field.Path) {
	s := c.s
	if s.TerminationGracePeriodSeconds == nil {
		c.required(p.Child("terminationGracePeriodSeconds"), "")
	}
	if len(s.Volumes) > 0 {
		c.volumeList(p.Child("volumes"))
	}
	c.resourceClaims(p)
	c.containers(p.Child("containers"))
	c.initContainers(p)
	c.ephemeralContainers(p)
	c.podResources(p)
	c.hostPorts(p)
	needOneOf(c.report, s.RestartPolicy, p, "restartPolicy", corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	needOneOf(c.report, s.DNSPolicy, p, "dnsPolicy", corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	if len(s.NodeSelector) > 0 {
		c.add(validate.Labels(s.NodeSelector, p.Child("nodeSelector")))
	}
	c.podSecurity(p)
	if s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && s.HostPID {
		c.invalid(p.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	c.scheduling(p)
	c.windowsHostProcess(p)
	c.userNamespace(p)
	c.names(p)
	c.operatingSystem(p)
	c.envFiles(p)
}

// scheduling checks what decides where the pod runs and when, and its DNS, which
// upstream looks at in between.
func (c *podCheck) scheduling(p *field.Path) {
	s := c.s
	if s.Affinity != nil {
		c.affinity(s.Affinity, p.Child("affinity"))
	}
	c.dnsConfig(p.Child("dnsConfig"))
	for i, g := range s.ReadinessGates {
		if m := validate.QualifiedName(string(g.ConditionType)); m != nil {
			c.invalids(p.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType), m)
		}
	}
	c.schedulingGates(p.Child("schedulingGates"))
	c.topologySpread(s.TopologySpreadConstraints, p.Child("topologySpreadConstraints"))
}

// names checks the fields that name other objects, and the small ones around them.
func (c *podCheck) names(p *field.Path) {
	s := c.s
	c.hostnameOverride(p)
	if s.ServiceAccountName != "" {
		c.objectName(s.ServiceAccountName, p, "serviceAccountName", false)
	}
	if s.NodeName != "" {
		c.objectName(s.NodeName, p, "nodeName", false)
	}
	if s.ActiveDeadlineSeconds != nil {
		inRange(c.report, *s.ActiveDeadlineSeconds, 1, math.MaxInt32, p, "activeDeadlineSeconds")
	}
	if s.Hostname != "" {
		c.label(s.Hostname, p, "hostname")
	}
	if s.Subdomain != "" {
		c.label(s.Subdomain, p, "subdomain")
	}
	if len(s.Tolerations) > 0 {
		tolerations(c.report, s.Tolerations, p.Child("tolerations"))
	}
	c.hostAliases(p.Child("hostAliases"))
	if s.PriorityClassName != "" {
		c.objectName(s.PriorityClassName, p, "priorityClassName", false)
	}
	if s.RuntimeClassName != nil {
		c.objectName(*s.RuntimeClassName, p, "runtimeClassName", false)
	}
	if s.PreemptionPolicy != nil {
		needOneOf(c.report, *s.PreemptionPolicy, p, "preemptionPolicy", corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	if s.Overhead != nil {
		c.add(ValidateOverhead(s.Overhead, p.Child("overhead")))
	}
}

// podAnnotations checks the annotations that mean something to Kubernetes.
func podAnnotations(r *report, annotations map[string]string, s *corev1.PodSpec, p *field.Path) {
	before := len(r.errs)
	defer func() {
		if found := r.errs[before:]; len(found) > 1 {
			slices.SortStableFunc(found, func(a, b *field.Error) int { return strings.Compare(a.Field, b.Field) })
		}
	}()
	for key, value := range annotations {
		switch {
		case key == corev1.MirrorPodAnnotationKey:
			if s.NodeName == "" {
				r.invalid(p.Key(key), value, "must set spec.nodeName if mirror pod annotation is set")
			}
		case key == corev1.TolerationsAnnotationKey && value != "":
			var list []corev1.Toleration
			if err := json.Unmarshal([]byte(value), &list); err != nil {
				r.invalid(p, key, err.Error())
			}
			tolerations(r, list, p.Child(key))
		case key == corev1.PodDeletionCost:
			if !deletionCost(value) {
				r.invalid(p.Key(key), value, "must be a 32bit integer")
			}
		case key == corev1.SeccompPodAnnotationKey, strings.HasPrefix(key, corev1.SeccompContainerAnnotationKeyPrefix):
			seccompAnnotation(r, value, p.Child(key))
		case strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix):
			appArmorAnnotation(r, key, value, s, p.Key(key))
		}
	}
}

// deletionCost tells whether a pod-deletion-cost can be read: a 32-bit number without
// leading zeros or plus sign (KEP-2255).
func deletionCost(value string) bool {
	if len(value) > 0 && (value[0] == '+' || value[0] == '0' && len(value) > 1 || strings.HasPrefix(value, "-0")) {
		return false
	}
	_, err := strconv.ParseInt(value, 10, 32)
	return err == nil
}

// hostPorts holds that the ports of a host-network pod are those of the host.
func (c *podCheck) hostPorts(p *field.Path) {
	if !c.s.HostNetwork {
		return
	}
	for i := range c.s.Containers {
		for j, port := range c.s.Containers[i].Ports {
			if (c.pod || port.HostPort != 0) && port.HostPort != port.ContainerPort {
				c.invalid(p.Child("containers").Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort,
					"must match `containerPort` when `hostNetwork` is true")
			}
		}
	}
}

// userNamespace holds that a pod with its own user namespace shares no other with the host.
func (c *podCheck) userNamespace(p *field.Path) {
	if c.hostUsers {
		return
	}
	const detail = "when `hostUsers` is false"
	if c.s.HostNetwork {
		c.forbidden(p.Child("hostNetwork"), detail)
	}
	if c.s.HostPID {
		c.forbidden(p.Child("HostPID"), detail)
	}
	if c.s.HostIPC {
		c.forbidden(p.Child("HostIPC"), detail)
	}
	eachContainerPath(c.s, p, func(ct *corev1.Container, at func() *field.Path) {
		if len(ct.VolumeDevices) > 0 {
			c.forbidden(at().Child("volumeDevices"), detail)
		}
	})
}

// eachContainerPath is eachContainer with the place of each container, made when asked for.
func eachContainerPath(s *corev1.PodSpec, p *field.Path, f func(c *corev1.Container, at func() *field.Path)) {
	for i := range s.InitContainers {
		f(&s.InitContainers[i], func() *field.Path { return p.Child("initContainers").Index(i) })
	}
	for i := range s.Containers {
		f(&s.Containers[i], func() *field.Path { return p.Child("containers").Index(i) })
	}
	for i := range s.EphemeralContainers {
		f((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon),
			func() *field.Path { return p.Child("ephemeralContainers").Index(i) })
	}
}

// hostnameOverride follows KEP-4762.
func (c *podCheck) hostnameOverride(p *field.Path) {
	name := c.s.HostnameOverride
	if name == nil {
		return
	}
	p = p.Child("hostnameOverride")
	if c.s.SetHostnameAsFQDN != nil && *c.s.SetHostnameAsFQDN {
		c.forbidden(p, "may not be specified when setHostnameAsFQDN is true")
	}
	if c.s.HostNetwork {
		c.forbidden(p, "may not be specified when hostNetwork is true")
	}
	if len(*name) > 64 {
		c.addOne(field.TooLong(p, "", 64))
	}
	c.add(validate.DNSSubdomainField(*name, p))
}

func (c *podCheck) hostAliases(p *field.Path) {
	for i, a := range c.s.HostAliases {
		c.add(validate.IP(a.IP, p.Index(i).Child("ip")))
		for j, name := range a.Hostnames {
			if m := validate.DNSSubdomain(name); m != nil {
				c.invalids(p.Index(i).Child("hostnames").Index(j), name, m)
			}
		}
	}
}

// Limits of the resolver's configuration.
const (
	maxNameservers  = 3
	maxSearchPaths  = 32
	maxSearchLength = 2048 // characters of all search paths, with a space between two
)

func (c *podCheck) dnsConfig(p *field.Path) {
	d := c.s.DNSConfig
	if c.s.DNSPolicy == corev1.DNSNone {
		if d == nil {
			c.required(p, "must provide `dnsConfig` when `dnsPolicy` is None")
			return
		}
		if len(d.Nameservers) == 0 {
			c.required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
			return
		}
	}
	if d == nil {
		return
	}
	if len(d.Nameservers) > maxNameservers {
		c.invalid(p.Child("nameservers"), d.Nameservers, "must not have more than 3 nameservers")
	}
	for i, ns := range d.Nameservers {
		c.add(validate.IP(ns, p.Child("nameservers").Index(i)))
	}
	if len(d.Searches) > maxSearchPaths {
		c.invalid(p.Child("searches"), d.Searches, "must not have more than 32 search paths")
	}
	if len(strings.Join(d.Searches, " ")) > maxSearchLength {
		c.invalid(p.Child("searches"), d.Searches, "must not have more than 2048 characters (including spaces) in the search list")
	}
	for i, search := range d.Searches {
		if search == "." {
			continue
		}
		search = strings.TrimSuffix(search, ".")
		c.invalids(p.Child("searches").Index(i), search, content.IsDNS1123SubdomainWithUnderscore(search))
	}
	for i, o := range d.Options {
		if o.Name == "" {
			c.required(p.Child("options").Index(i), "must not be empty")
		}
	}
}
