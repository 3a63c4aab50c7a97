package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"

	"coracle.dev/coracle/api/validate"
)

// nameRule says what is wrong with the name of a resource.
type nameRule func(corev1.ResourceName, *field.Path) field.ErrorList

// ValidateOverhead checks what a pod needs beside its containers (KEP-688), in pods and
// in RuntimeClasses.
func ValidateOverhead(overhead corev1.ResourceList, path *field.Path) field.ErrorList {
	r := &report{}
	requirements(r, &corev1.ResourceRequirements{Limits: overhead}, validate.ContainerResourceName, func() *field.Path { return path })
	return r.errs
}

// resources checks the field "resources" of a container or pod at p.
func (c *podCheck) resources(rs *corev1.ResourceRequirements, name nameRule, p *field.Path) {
	if rs.Limits == nil && rs.Requests == nil && rs.Claims == nil {
		return
	}
	place := func() *field.Path { return p.Child("resources") }
	requirements(c.report, rs, name, place)
	if len(rs.Claims) > 0 {
		c.claimNames(rs.Claims, place().Child("claims"))
	}
}

// requirements checks limits, requests and what they are to each other.
func requirements(r *report, rs *corev1.ResourceRequirements, name nameRule, place func() *field.Path) {
	var compute, huge bool
	for resource, q := range inOrder(rs.Limits) {
		resourceAmount(r, resource, q, name, place, "limits")
		compute = compute || resource == corev1.ResourceCPU || resource == corev1.ResourceMemory
		huge = huge || validate.HugePages(resource)
	}
	for resource, q := range inOrder(rs.Requests) {
		request(r, resource, q, rs.Limits, name, place)
		compute = compute || resource == corev1.ResourceCPU || resource == corev1.ResourceMemory
		huge = huge || validate.HugePages(resource)
	}
	if huge && !compute {
		r.forbidden(place(), "HugePages require cpu or memory")
	}
}

func request(r *report, resource corev1.ResourceName, q resource.Quantity, limits corev1.ResourceList, name nameRule, place func() *field.Path) {
	resourceName(r, resource, q, name, place, "requests")
	limit, limited := limits[resource]
	switch {
	case !limited:
		if !validate.OvercommitAllowed(resource) {
			r.required(place().Child("limits"), "Limit must be set for non overcommitable resources")
		}
	case q.Cmp(limit) == 0:
	case !validate.OvercommitAllowed(resource):
		r.invalid(place().Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", resource, limit.String()))
	case q.Cmp(limit) > 0:
		r.invalid(place().Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", resource, limit.String()))
	}
	hugePageMultiple(r, resource, q, place, "requests")
}

// resourceAmount checks the name, the amount and, of huge pages, that pages are whole.
func resourceAmount(r *report, resource corev1.ResourceName, q resource.Quantity, name nameRule, place func() *field.Path, list string) {
	resourceName(r, resource, q, name, place, list)
	hugePageMultiple(r, resource, q, place, list)
}

func resourceName(r *report, resource corev1.ResourceName, q resource.Quantity, name nameRule, place func() *field.Path, list string) {
	if (resource == corev1.ResourceCPU || resource == corev1.ResourceMemory) && q.Sign() >= 0 {
		return // by far the most
	}
	p := place().Child(list).Key(string(resource))
	r.add(name(resource, p))
	r.add(validate.ResourceQuantity(resource, q, p))
}

func hugePageMultiple(r *report, name corev1.ResourceName, q resource.Quantity, place func() *field.Path, list string) {
	if !validate.HugePages(name) || wholePages(name, q) {
		return
	}
	r.invalid(place().Child(list).Key(string(name)), q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name))
}

// wholePages tells whether q is a multiple of the page size that the resource is named for.
func wholePages(name corev1.ResourceName, q resource.Quantity) bool {
	page, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
	if err != nil || page.Sign() <= 0 || page.MilliValue()%1000 != 0 {
		return false
	}
	return q.Value()%page.Value() == 0
}

// resourceClaims checks the claims for devices that the pod names (KEP-4381).
func (c *podCheck) resourceClaims(spec *field.Path) {
	claims := c.s.ResourceClaims
	if len(claims) == 0 {
		return
	}
	p := spec.Child("resourceClaims")
	var seen names
	for i := range claims {
		if c.meta != nil {
			if _, mirror := c.meta.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
				c.forbidden(field.NewPath(""), "static pods do not support resource claims")
				continue
			}
		}
		claim, at := &claims[i], p.Index(i)
		switch {
		case claim.Name == "":
			c.required(at.Child("name"), "")
		case seen.add(claim.Name):
			c.duplicate(at.Child("name"), claim.Name)
		default:
			c.label(claim.Name, at, "name")
		}
		if claim.ResourceClaimName != nil && claim.ResourceClaimTemplateName != nil {
			c.invalid(at, *claim, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		}
		if claim.ResourceClaimName == nil && claim.ResourceClaimTemplateName == nil {
			c.invalid(at, *claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if claim.ResourceClaimName != nil {
			c.objectName(*claim.ResourceClaimName, at, "resourceClaimName", false)
		}
		if claim.ResourceClaimTemplateName != nil {
			c.objectName(*claim.ResourceClaimTemplateName, at, "resourceClaimTemplateName", false)
		}
	}
}

// claimNames holds that a container refers to claims of the pod, to each once or to several
// requests of it.
func (c *podCheck) claimNames(claims []corev1.ResourceClaim, p *field.Path) {
	var whole, part, requests names
	for i, claim := range claims {
		at := p.Index(i)
		if claim.Name == "" {
			c.required(at, "")
			continue
		}
		switch {
		case whole.has(claim.Name):
			c.duplicate(at, claim.Name)
		case claim.Request == "":
			if part.has(claim.Name) {
				c.duplicate(at, claim.Name)
			}
			whole.add(claim.Name)
		default:
			c.label(claim.Request, at, "request")
			part.add(claim.Name)
			if requests.add(claim.Name + "/" + claim.Request) {
				c.duplicate(at, claim.Name+"/"+claim.Request)
			}
		}
		c.knownClaim(claim.Name, at)
	}
}

func (c *podCheck) knownClaim(name string, p *field.Path) {
	var names []string
	for _, claim := range c.s.ResourceClaims {
		if claim.Name == name {
			return
		}
		if claim.Name != "" && !slices.Contains(names, claim.Name) {
			names = append(names, claim.Name)
		}
	}
	err := field.NotFound(p, name)
	err.Detail = "must be one of the names in pod.spec.resourceClaims"
	if len(names) == 0 {
		err.Detail += " which is empty"
	} else {
		slices.Sort(names)
		err.Detail += ": " + strings.Join(names, ", ")
	}
	c.addOne(err)
}

// podResources checks the resources of the whole pod (KEP-2837).
func (c *podCheck) podResources(spec *field.Path) {
	rs := c.s.Resources
	if rs == nil {
		return
	}
	p := spec.Child("resources")
	if c.s.OS != nil && c.s.OS.Name == corev1.Windows {
		c.forbidden(p, "may not be set for a windows pod")
		return
	}
	if rs.Claims != nil {
		c.forbidden(p.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	c.resources(rs, podResourceName, spec)
	c.podResourcesCoverContainers(rs, p)
}

func podResourceName(name corev1.ResourceName, p *field.Path) field.ErrorList {
	if errs := validate.ResourceName(name, p); len(errs) > 0 {
		return errs
	}
	if resourcehelper.IsSupportedPodLevelResource(name) {
		return nil
	}
	supported := resourcehelper.SupportedPodLevelResources().UnsortedList()
	slices.Sort(supported)
	return field.ErrorList{field.NotSupported(p, name, supported)}
}

func (c *podCheck) podResourcesCoverContainers(rs *corev1.ResourceRequirements, p *field.Path) {
	pod := &corev1.Pod{Spec: *c.s}
	for name, sum := range inOrder(resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})) {
		if have, ok := rs.Requests[name]; ok && sum.Cmp(have) > 0 {
			c.invalid(p.Child("requests").Key(string(name)), have.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", sum.String()))
		}
	}
	for name, sum := range inOrder(resourcehelper.AggregateContainerLimits(pod, resourcehelper.PodResourcesOptions{})) {
		if have, ok := rs.Limits[name]; ok && validate.HugePages(name) && sum.Cmp(have) > 0 {
			c.invalid(p.Child("limits").Key(string(name)), have.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container limits of %s", sum.String()))
		}
	}
	for i := range c.s.Containers {
		for name, limit := range inOrder(c.s.Containers[i].Resources.Limits) {
			if have, ok := rs.Limits[name]; ok && limit.Cmp(have) > 0 {
				c.invalid(p.Child("containers").Index(i).Key(string(name)).Child("limits"), limit.String(),
					fmt.Sprintf("must be less than or equal to pod limits of %s", have.String()))
			}
		}
	}
}
