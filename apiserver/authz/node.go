package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/selection"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
)

// Node allows the kubelet of a node what belongs to that node and no other: its pods and what these refer to
// (https://kubernetes.io/docs/reference/access-authn-authz/node/). What it writes is narrowed further by the admission plug-in
// NodeRestriction. It keeps nothing: relations are read from the store's indexes at each question. It has no opinion of
// other users.
type Node struct {
	Store client.Reader
}

// NodeOf gives the name of the node that a user is, and whether it is one: system:node:NAME in the group system:nodes.
// The name may be empty.
func NodeOf(u *client.User) (name string, ok bool) {
	name, ok = strings.CutPrefix(u.Name, "system:node:")
	if !ok || !u.In(client.GroupNodes) {
		return "", false
	}
	return name, true
}

// nodeRules are what every node may do alike, beside what is looked at object by object.
var nodeRules = []rbacv1.PolicyRule{
	{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}},
	{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews", "localsubjectaccessreviews"}},
	{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"services"}},
	{Verbs: []string{"create", "update", "patch"}, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}},
	{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"endpoints"}},
	{Verbs: []string{"create", "get", "list", "watch"}, APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests"}},
	{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"clustertrustbundles"}},
	{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{"storage.k8s.io"}, Resources: []string{"csidrivers"}},
	{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{"node.k8s.io"}, Resources: []string{"runtimeclasses"}},
}

// Authorize implements Authorizer.
func (n *Node) Authorize(_ context.Context, a *Attributes) (Decision, string, error) {
	name, ok := NodeOf(&a.User)
	if !ok {
		return NoOpinion, "", nil
	}
	if name == "" {
		return NoOpinion, fmt.Sprintf("unknown node for user %q", a.User.Name), nil
	}
	q := question{Attributes: a, node: name, snap: n.Store.Snapshot()}
	if ok, why, looked := q.decide(); looked {
		return If(ok), why, nil
	}
	return If(slices.ContainsFunc(nodeRules, func(r rbacv1.PolicyRule) bool { return Covers(&r, a) })), "", nil
}

// question is what a node wants to do, and the state in which that is judged.
type question struct {
	*Attributes
	node string
	snap store.Snapshot
}

// decide judges requests for resources that are looked at object by object; looked tells whether this is one.
func (q question) decide() (ok bool, why string, looked bool) {
	looked = q.IsResource
	switch q.Group {
	case "":
		switch q.Resource {
		case "secrets":
			ok, why = q.read(q.usesSecret)
		case "configmaps":
			ok, why = q.read(q.usesConfigMap)
		case "persistentvolumeclaims":
			ok, why = q.claim()
		case "persistentvolumes":
			ok, why = q.get(q.usesVolume)
		case "serviceaccounts":
			ok, why = q.account()
		case "nodes":
			ok, why = q.ownNode()
		case "pods":
			ok, why = q.pod()
		default:
			looked = false
		}
	case "resource.k8s.io":
		switch q.Resource {
		case "resourceclaims":
			ok, why = q.get(q.usesResourceClaim)
		case "resourceslices":
			ok, why = q.slice()
		default:
			looked = false
		}
	case "storage.k8s.io":
		switch q.Resource {
		case "volumeattachments":
			ok, why = q.get(q.hasAttachment)
		case "csinodes":
			ok, why = q.csiNode()
		default:
			looked = false
		}
	case "coordination.k8s.io":
		if looked = looked && q.Resource == "leases"; looked {
			ok, why = q.lease()
		}
	case "certificates.k8s.io":
		if looked = looked && q.Resource == "podcertificaterequests"; looked {
			ok, why = q.certificateRequest()
		}
	default:
		looked = false
	}
	return ok, why, looked
}

// related judges by whether the object has to do with the node.
func (q question) related(is func() bool) (bool, string) {
	switch {
	case q.Name == "":
		return false, "No Object name found"
	case !is():
		return false, q.unrelated()
	}
	return true, ""
}

func (q question) unrelated() string {
	return fmt.Sprintf("no relationship found between node '%s' and this object", q.node)
}

// verb tells whether the verb is one of several.
func (q question) verb(verbs ...string) bool { return slices.Contains(verbs, q.Verb) }

// get allows to get single objects.
func (q question) get(is func() bool) (bool, string) {
	switch {
	case q.Verb != "get":
		return false, "can only get individual resources of this type"
	case q.Subresource != "":
		return false, "cannot get subresource"
	}
	return q.related(is)
}

// read allows to get, list and watch single objects of a namespace.
func (q question) read(is func() bool) (bool, string) {
	switch {
	case !q.verb("get", "list", "watch"):
		return false, "can only read resources of this type"
	case q.Subresource != "":
		return false, "cannot read subresource"
	case q.Namespace == "":
		return false, "can only read namespaced object of this type"
	}
	return q.related(is)
}

func (q question) claim() (bool, string) {
	if q.Subresource != "status" {
		return q.get(q.usesClaim)
	}
	if !q.verb("update", "patch") {
		return false, "can only get/update/patch this type"
	}
	return q.related(q.usesClaim)
}

func (q question) account() (bool, string) {
	switch {
	case q.Verb == "get" && q.Subresource == "":
		return q.read(q.usesAccount)
	case q.Verb != "create" || q.Name == "":
		return false, "can only create tokens for individual service accounts"
	case q.Subresource != "token":
		return false, "can only create token subresource of serviceaccount"
	}
	return q.related(q.usesAccount)
}

func (q question) lease() (bool, string) {
	switch {
	case !q.verb("get", "create", "update", "patch", "delete"):
		return false, "can only get, create, update, patch, or delete a node lease"
	case q.Namespace != corev1.NamespaceNodeLease:
		return false, fmt.Sprintf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	case q.Verb != "create" && q.Name != q.node: // admission looks at what is created
		return false, "can only access node lease with the same name as the requesting node"
	}
	return true, ""
}

func (q question) csiNode() (bool, string) {
	switch {
	case q.Subresource == "status":
		return false, "CSINode status access requires CSIVolumeHealth feature"
	case q.Subresource != "":
		return false, "cannot authorize CSINode subresources"
	case !q.verb("get", "create", "update", "patch", "delete"):
		return false, "can only get, create, update, patch, or delete a CSINode"
	case q.Verb != "create" && q.Name != q.node:
		return false, "can only access CSINode with the same name as the requesting node"
	}
	return true, ""
}

func (q question) slice() (bool, string) {
	if q.Subresource != "" {
		return false, "cannot authorize ResourceSlice subresources"
	}
	switch q.Verb {
	case "create":
		return true, ""
	case "get", "update", "patch", "delete":
		return q.related(q.hasSlice)
	case "watch", "list", "deletecollection":
		if q.selects("spec.nodeName") {
			return true, ""
		}
		return false, "can only list/watch/deletecollection resourceslices with nodeName field selector"
	}
	return false, "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"
}

func (q question) certificateRequest() (bool, string) {
	if q.Subresource != "" {
		return false, "nodes may not access the status subresource of PodCertificateRequests"
	}
	switch q.Verb {
	case "create":
		return true, ""
	case "get":
		return q.related(q.hasCertificateRequest)
	case "list", "watch":
		if q.selects("spec.nodeName") {
			return true, ""
		}
		return false, "can only list/watch podcertificaterequests with nodeName field selector"
	}
	return false, fmt.Sprintf("nodes may not %s podcertificaterequests", q.Verb)
}

func (q question) ownNode() (bool, string) {
	switch {
	case q.Subresource == "status":
		return q.verb("update", "patch"), ""
	case q.Subresource != "":
		return false, ""
	case q.verb("create", "update", "patch"):
		return true, ""
	case !q.verb("get", "list", "watch"):
		return false, ""
	}
	switch q.Name {
	case q.node:
		return true, ""
	case "":
		return false, fmt.Sprintf("node '%s' cannot read all nodes, only its own Node object", q.node)
	}
	return false, fmt.Sprintf("node '%s' cannot read '%s', only its own Node object", q.node, q.Name)
}

func (q question) pod() (bool, string) {
	switch q.Subresource {
	case "":
	case "status":
		return q.verb("update", "patch"), ""
	case "eviction":
		return q.Verb == "create", ""
	default:
		return false, ""
	}
	switch q.Verb {
	case "get":
		return q.related(q.hasPod)
	case "list", "watch":
		switch {
		case q.selects("spec.nodeName"):
			return true, ""
		case q.Name != "":
			return q.related(q.hasPod)
		}
		return false, "can only list/watch pods with spec.nodeName field selector"
	case "create", "delete":
		return true, ""
	}
	return false, ""
}

// selects tells whether the request asks only for objects whose field names this node.
func (q question) selects(field string) bool {
	for i := range q.Fields {
		if r := &q.Fields[i]; r.Field == field && r.Operator == selection.Equals && r.Value == q.node {
			return true
		}
	}
	return false
}
