package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/api/validate"
)

// DefaultPodTemplate fills the template of a workload as upstream does when
// it decodes one.
func DefaultPodTemplate(t *corev1.PodTemplateSpec) {
	DefaultPodSpec(&t.Spec)
}

// DefaultPodSpec fills what a pod spec left out, except for the defaults that
// only pods have and templates do not (requests from limits, pod-level resources: see
// defaultPod), and takes out the fields of alpha features. It is idempotent and shares no
// memory between objects.
func DefaultPodSpec(s *corev1.PodSpec) {
	dropGated(s)
	if s.DNSPolicy == "" {
		s.DNSPolicy = corev1.DNSClusterFirst
	}
	if s.RestartPolicy == "" {
		s.RestartPolicy = corev1.RestartPolicyAlways
	}
	if s.SecurityContext == nil {
		s.SecurityContext = &corev1.PodSecurityContext{}
	}
	if s.TerminationGracePeriodSeconds == nil {
		s.TerminationGracePeriodSeconds = new(int64(corev1.DefaultTerminationGracePeriodSeconds))
	}
	if s.SchedulerName == "" {
		s.SchedulerName = corev1.DefaultSchedulerName
	}
	// The deprecated twin of serviceAccountName is kept equal on the wire.
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = s.DeprecatedServiceAccount
	}
	s.DeprecatedServiceAccount = s.ServiceAccountName
	for i := range s.InitContainers {
		defaultContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		defaultContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		// The common part has the same fields as a container by definition.
		defaultContainer((*corev1.Container)(&s.EphemeralContainers[i].EphemeralContainerCommon))
	}
	defaultResourceList(s.Overhead)
	defaultRequirements(s.Resources)
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
}

// defaultPod fills a pod: its spec, and what pods have that templates do not, so that
// a template keeps the words of its author.
func defaultPod(p *corev1.Pod) {
	s := &p.Spec
	DefaultPodSpec(s)
	for i := range s.Containers {
		requestLimits(&s.Containers[i].Resources)
	}
	for i := range s.InitContainers {
		requestLimits(&s.InitContainers[i].Resources)
	}
	if s.Resources != nil {
		defaultPodResources(p)
	}
	if s.EnableServiceLinks == nil {
		s.EnableServiceLinks = new(corev1.DefaultEnableServiceLinks)
	}
	if s.HostNetwork {
		defaultHostPorts(s.InitContainers)
		defaultHostPorts(s.Containers)
	}
	defaultPodStatus(&p.Status)
}

// requestLimits makes a container request what it is limited to where it names no request.
func requestLimits(r *corev1.ResourceRequirements) {
	for name, limit := range r.Limits {
		if _, ok := r.Requests[name]; ok {
			continue
		}
		if r.Requests == nil {
			r.Requests = make(corev1.ResourceList, len(r.Limits))
		}
		r.Requests[name] = limit.DeepCopy()
	}
}

// defaultPodResources completes pod-level resources from those of the containers
// (KEP-2837): limits of huge pages, then requests.
func defaultPodResources(p *corev1.Pod) {
	r := p.Spec.Resources
	if len(r.Limits) == 0 && len(r.Requests) == 0 {
		return
	}
	sum := resourcehelper.AggregateContainerLimits(p, resourcehelper.PodResourcesOptions{})
	for name, limit := range sum {
		if _, requested := r.Requests[name]; requested || !validate.HugePages(name) || !resourcehelper.IsSupportedPodLevelResource(name) {
			continue
		}
		setIfAbsent(&r.Limits, name, limit)
	}
	if len(r.Limits) == 0 {
		return
	}
	sum = resourcehelper.AggregateContainerRequests(p, resourcehelper.PodResourcesOptions{})
	for name, request := range sum {
		if resourcehelper.IsSupportedPodLevelResource(name) && validate.OvercommitAllowed(name) {
			setIfAbsent(&r.Requests, name, request)
		}
	}
	for name, limit := range r.Limits {
		if resourcehelper.IsSupportedPodLevelResource(name) {
			setIfAbsent(&r.Requests, name, limit)
		}
	}
}

func setIfAbsent(l *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if _, ok := (*l)[name]; ok {
		return
	}
	if *l == nil {
		*l = corev1.ResourceList{}
	}
	(*l)[name] = q.DeepCopy()
}

// defaultPodStatus keeps podIP the first of podIPs, as writers of either expect, and
// rounds quantities.
func defaultPodStatus(s *corev1.PodStatus) {
	switch {
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			defaultResourceList(list[i].AllocatedResources)
			defaultRequirements(list[i].Resources)
		}
	}
	defaultResourceList(s.AllocatedResources)
	defaultRequirements(s.Resources)
}

func defaultRequirements(r *corev1.ResourceRequirements) {
	if r != nil {
		defaultResourceList(r.Limits)
		defaultResourceList(r.Requests)
	}
}

// defaultHostPorts makes the container ports of a host-network pod host ports.
func defaultHostPorts(cs []corev1.Container) {
	for i := range cs {
		for j := range cs[i].Ports {
			if p := &cs[i].Ports[j]; p.HostPort == 0 {
				p.HostPort = p.ContainerPort
			}
		}
	}
}

func defaultContainer(c *corev1.Container) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = pullPolicy(c.Image)
	}
	if c.TerminationMessagePath == "" {
		c.TerminationMessagePath = corev1.TerminationMessagePathDefault
	}
	if c.TerminationMessagePolicy == "" {
		c.TerminationMessagePolicy = corev1.TerminationMessageReadFile
	}
	for i := range c.Ports {
		if c.Ports[i].Protocol == "" {
			c.Ports[i].Protocol = corev1.ProtocolTCP
		}
	}
	for i := range c.Env {
		defaultEnv(&c.Env[i])
	}
	defaultRequirements(&c.Resources)
	defaultProbe(c.LivenessProbe)
	defaultProbe(c.ReadinessProbe)
	defaultProbe(c.StartupProbe)
	if l := c.Lifecycle; l != nil {
		defaultHandler(l.PostStart)
		defaultHandler(l.PreStop)
	}
}

// pullPolicy is Always for images with the tag latest, which is what no tag means.
func pullPolicy(image string) corev1.PullPolicy {
	if imageTag(image) == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func defaultEnv(e *corev1.EnvVar) {
	f := e.ValueFrom
	if f == nil {
		return
	}
	defaultFieldRef(f.FieldRef)
	if f.FileKeyRef != nil && f.FileKeyRef.Optional == nil {
		f.FileKeyRef.Optional = new(false)
	}
}

func defaultFieldRef(r *corev1.ObjectFieldSelector) {
	if r != nil && r.APIVersion == "" {
		r.APIVersion = "v1"
	}
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	if p.TimeoutSeconds == 0 {
		p.TimeoutSeconds = 1
	}
	if p.PeriodSeconds == 0 {
		p.PeriodSeconds = 10
	}
	if p.SuccessThreshold == 0 {
		p.SuccessThreshold = 1
	}
	if p.FailureThreshold == 0 {
		p.FailureThreshold = 3
	}
	defaultHTTPGet(p.HTTPGet)
	if p.GRPC != nil && p.GRPC.Service == nil {
		p.GRPC.Service = new("")
	}
}

func defaultHandler(h *corev1.LifecycleHandler) {
	if h != nil {
		defaultHTTPGet(h.HTTPGet)
	}
}

func defaultHTTPGet(g *corev1.HTTPGetAction) {
	if g == nil {
		return
	}
	if g.Path == "" {
		g.Path = "/"
	}
	if g.Scheme == "" {
		g.Scheme = corev1.URISchemeHTTP
	}
}

// defaultResourceList rounds quantities up to milli-units, the finest that the API keeps.
func defaultResourceList(l corev1.ResourceList) {
	for name, q := range l {
		if q.RoundUp(resource.Milli) {
			continue
		}
		l[name] = q
	}
}
