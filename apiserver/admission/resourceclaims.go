package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/apiserver/authz"
	"coracle.dev/coracle/client"
)

// adminLabel, as "true" on a namespace, lets claims in it look at devices that others use (KEP-5018).
const adminLabel = "resource.kubernetes.io/admin-access"

// ResourceClaims rules who may ask for administrator's access to devices, give devices to claims, and speak of their state
// (KEP-5018, KEP-4817 and the granular authorization of a claim's status). It stands for what upstream checks in its storage.
func ResourceClaims(authorizer authz.Authorizer) Plugin {
	return Plugin{Name: "ResourceClaims", Mutate: dateTaints, Validate: func(ctx context.Context, r *Request) error {
		if r.Local || r.Kind.Group != resourcev1.GroupName || r.Object == nil {
			return nil
		}
		var errs field.ErrorList
		switch o := r.Object.(type) {
		case *resourcev1.ResourceClaim:
			switch r.Subresource {
			case "":
				if r.Operation == Create {
					errs = adminSpec(r, o.Spec.Devices.Requests, field.NewPath("spec", "devices", "requests"))
				}
			case "status":
				errs = claimStatus(ctx, r, authorizer, o, r.Old.(*resourcev1.ResourceClaim))
			}
		case *resourcev1.ResourceClaimTemplate:
			if r.Operation == Create {
				errs = adminSpec(r, o.Spec.Spec.Devices.Requests, field.NewPath("spec", "devices", "requests"))
			}
		}
		if len(errs) == 0 {
			return nil
		}
		return apierrors.NewInvalid(schema.GroupKind{Group: resourcev1.GroupName, Kind: r.Kind.Kind}, r.displayName(), errs)
	}}
}

// dateTaints says since when devices are tainted, where that is not said.
func dateTaints(_ context.Context, r *Request) error {
	if r.Kind.Group != resourcev1.GroupName || r.Subresource != "" {
		return nil
	}
	now := metav1.NewTime(r.Now.Truncate(time.Second))
	date := func(t *resourcev1.DeviceTaint) {
		if t.TimeAdded == nil {
			t.TimeAdded = now.DeepCopy()
		}
	}
	switch o := r.Object.(type) {
	case *resourcev1.DeviceTaintRule:
		date(&o.Spec.Taint)
	case *resourcev1.ResourceSlice:
		for i := range o.Spec.Devices {
			for k := range o.Spec.Devices[i].Taints {
				date(&o.Spec.Devices[i].Taints[k])
			}
		}
	}
	return nil
}

// adminSpec refuses requests for administrator's access outside of namespaces that are labelled for it.
func adminSpec(r *Request, requests []resourcev1.DeviceRequest, path *field.Path) field.ErrorList {
	for i := range requests {
		if e := requests[i].Exactly; e != nil && e.AdminAccess != nil && *e.AdminAccess {
			return adminNamespace(r, path.Index(i).Child("adminAccess"))
		}
	}
	return nil
}

func adminNamespace(r *Request, path *field.Path) field.ErrorList {
	if ns, ok := client.Namespaces.Get(r.Snapshot, "", r.Namespace); ok && ns.Labels[adminLabel] == "true" {
		return nil
	}
	return field.ErrorList{field.Forbidden(path, fmt.Sprintf("admin access to devices requires the `%s: true` label on the containing namespace", adminLabel))}
}

// adminResult is the first device that an allocation gives to an administrator, -1 for none.
func adminResult(a *resourcev1.AllocationResult) int {
	if a == nil {
		return -1
	}
	return slices.IndexFunc(a.Devices.Results, func(d resourcev1.DeviceRequestAllocationResult) bool { return d.AdminAccess != nil && *d.AdminAccess })
}

func claimStatus(ctx context.Context, r *Request, authorizer authz.Authorizer, c, old *resourcev1.ResourceClaim) field.ErrorList {
	var errs field.ErrorList
	if i := adminResult(c.Status.Allocation); i >= 0 && adminResult(old.Status.Allocation) < 0 {
		errs = adminNamespace(r, field.NewPath("status", "allocation", "devices", "results").Index(i).Child("adminAccess"))
	}
	verb := "update"
	if _, patch := r.Options.(*metav1.PatchOptions); patch {
		verb = "patch"
	}
	ask := func(verb, subresource, namespace, name string) string {
		a := &authz.Attributes{User: r.User, Verb: verb, IsResource: true, Group: resourcev1.GroupName, Version: "v1",
			Resource: "resourceclaims", Subresource: subresource, Namespace: namespace, Name: name}
		d, reason, err := authorizer.Authorize(ctx, a)
		switch {
		case d == authz.Allowed:
			return ""
		case err != nil:
			reason = err.Error()
		}
		return authz.Forbidden(a, reason).Error()
	}
	if !equality.Semantic.DeepEqual(c.Status.Allocation, old.Status.Allocation) || !equality.Semantic.DeepEqual(c.Status.ReservedFor, old.Status.ReservedFor) {
		if denied := ask(verb, resourcev1.SubresourceBinding, "", ""); denied != "" {
			errs = append(errs, field.Forbidden(field.NewPath("status", "allocation"),
				fmt.Sprintf(`changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", verb="%s" permission: %s`, verb, denied)))
		}
	}
	if c.Status.Allocation == nil {
		return errs
	}
	verbs := []string{resourcev1.VerbPrefixArbitraryNode + verb}
	if onNode(&r.User, c.Status.Allocation) {
		verbs = []string{resourcev1.VerbPrefixAssociatedNode + verb, resourcev1.VerbPrefixArbitraryNode + verb}
	}
	for _, driver := range changedDrivers(c, old) {
		first := ""
		for i, v := range verbs {
			denied := ask(v, resourcev1.SubresourceDriver, r.Namespace, driver)
			if i == 0 || denied == "" {
				first = denied
			}
			if denied == "" {
				break
			}
		}
		if first != "" {
			errs = append(errs, field.Forbidden(field.NewPath("status", "devices"),
				fmt.Sprintf(`changing status.devices requires resource="resourceclaims/driver", verb="%s" permission: %s`, verbs, first)))
		}
	}
	return errs
}

// changedDrivers are those whose devices have another state than before, sorted.
func changedDrivers(c, old *resourcev1.ResourceClaim) []string {
	key := func(d *resourcev1.AllocatedDeviceStatus) string {
		share := ""
		if d.ShareID != nil {
			share = *d.ShareID
		}
		return strings.Join([]string{d.Driver, d.Pool, d.Device, share}, "\x00")
	}
	before := map[string]*resourcev1.AllocatedDeviceStatus{}
	for i := range old.Status.Devices {
		before[key(&old.Status.Devices[i])] = &old.Status.Devices[i]
	}
	var drivers []string
	for i := range c.Status.Devices {
		d := &c.Status.Devices[i]
		if was := before[key(d)]; was == nil || !equality.Semantic.DeepEqual(was, d) {
			drivers = append(drivers, d.Driver)
		}
		delete(before, key(d))
	}
	for _, d := range before {
		drivers = append(drivers, d.Driver)
	}
	slices.Sort(drivers)
	return slices.Compact(drivers)
}

// onNode tells whether a service account's token is bound to the one node on which an allocation can be used.
func onNode(u *client.User, a *resourcev1.AllocationResult) bool {
	if a.NodeSelector == nil || len(a.NodeSelector.NodeSelectorTerms) != 1 || !strings.HasPrefix(u.Name, "system:serviceaccount:") {
		return false
	}
	t := a.NodeSelector.NodeSelectorTerms[0]
	if len(t.MatchExpressions) != 0 || len(t.MatchFields) != 1 {
		return false
	}
	f, nodes := t.MatchFields[0], u.Extra["authentication.kubernetes.io/node-name"]
	return f.Key == "metadata.name" && f.Operator == "In" && len(f.Values) == 1 && len(nodes) == 1 && nodes[0] == f.Values[0] && nodes[0] != ""
}
