package apiserver

import (
	"fmt"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
)

// nodeEnv is a server with two nodes and a pod on each.
type nodeEnv struct {
	*env
	n1   *kubernetes.Clientset // node n1's
	pods map[string]*corev1.Pod
}

func startNodes(t *testing.T) *nodeEnv {
	e := &nodeEnv{env: start(t, builtin.Kinds()), pods: map[string]*corev1.Pod{}}
	e.n1 = clientset(t, e.as("system:node:n1", client.GroupNodes))
	for _, node := range []string{"n1", "n2"} {
		must(t)(e.typed.CoreV1().Nodes().Create(ctx(t), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}))
		must(t)(e.typed.CoreV1().PersistentVolumes().Create(ctx(t), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + node},
			Spec: corev1.PersistentVolumeSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				ClaimRef:    &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "claim-" + node},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: node + ".example.com", VolumeHandle: "v", NodeStageSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "stage-" + node},
					ControllerPublishSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "attach-" + node}}}}}, metav1.CreateOptions{}))
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "on-" + node}, Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i",
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "env-" + node}}}},
				Env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
					LocalObjectReference: corev1.LocalObjectReference{Name: "key-" + node}, Key: "k"}}}},
			}},
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull-" + node}},
			Volumes: []corev1.Volume{
				{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol-" + node}}},
				{Name: "c", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim-" + node}}},
			}}}
		must(t)(e.typed.CoreV1().PersistentVolumeClaims("default").Create(ctx(t), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim-" + node},
			Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: "pv-" + node,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}, metav1.CreateOptions{}))
		must(t)(e.typed.StorageV1().CSIDrivers().Create(ctx(t), &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: node + ".example.com"},
			Spec: storagev1.CSIDriverSpec{TokenRequests: []storagev1.TokenRequest{{Audience: "csi-" + node}}}}, metav1.CreateOptions{}))
		made, err := e.typed.CoreV1().Pods("default").Create(ctx(t), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		e.pods[node] = made
		must(t)(e.typed.StorageV1().VolumeAttachments().Create(ctx(t), &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "va-" + node},
			Spec: storagev1.VolumeAttachmentSpec{Attacher: "d.example.com", NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr("pv-" + node)}}}, metav1.CreateOptions{}))
	}
	return e
}

func ptr[T any](v T) *T { return &v }

func must(t *testing.T) func(any, error) {
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestNodeReads asks for everything that a pod can refer to, of the own node and of another.
func TestNodeReads(t *testing.T) {
	e := startNodes(t)
	unrelated := "no relationship found between node 'n1' and this object"
	for _, test := range []struct{ verb, path, why string }{
		{"GET", "/api/v1/namespaces/default/secrets/key-%s", unrelated},
		{"GET", "/api/v1/namespaces/default/secrets/pull-%s", unrelated},
		{"GET", "/api/v1/namespaces/default/secrets/vol-%s", unrelated},
		{"GET", "/api/v1/namespaces/storage/secrets/stage-%s", unrelated},
		{"GET", "/api/v1/namespaces/default/configmaps/env-%s", unrelated},
		{"GET", "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%%3Dkey-%s", unrelated},
		{"GET", "/api/v1/namespaces/default/persistentvolumeclaims/claim-%s", unrelated},
		{"GET", "/api/v1/persistentvolumes/pv-%s", unrelated},
		{"GET", "/api/v1/namespaces/default/pods/on-%s", unrelated},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%%3D%s", "can only list/watch pods with spec.nodeName field selector"},
		{"GET", "/apis/storage.k8s.io/v1/volumeattachments/va-%s", unrelated},
		{"GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/%s", "can only access node lease with the same name as the requesting node"},
		{"GET", "/apis/storage.k8s.io/v1/csinodes/%s", "can only access CSINode with the same name as the requesting node"},
		{"GET", "/api/v1/nodes/%s", "node 'n1' cannot read 'n2', only its own Node object"},
		{"GET", "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%%3D%s", "can only list/watch/deletecollection resourceslices with nodeName field selector"},
	} {
		for _, node := range []string{"n1", "n2"} {
			path := fmt.Sprintf(test.path, node)
			err := e.n1.RESTClient().Verb(test.verb).RequestURI(path).Do(ctx(t)).Error()
			switch {
			case node == "n1" && apierrors.IsForbidden(err):
				t.Errorf("%s: %v", path, err)
			case node == "n2" && (!apierrors.IsForbidden(err) || !strings.HasSuffix(err.Error(), ": "+test.why)):
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	for path, want := range map[string]string{
		"/api/v1/pods":                                       "can only list/watch pods with spec.nodeName field selector",
		"/api/v1/nodes":                                      "node 'n1' cannot read all nodes, only its own Node object",
		"/api/v1/namespaces/default/secrets":                 "No Object name found",
		"/api/v1/secrets":                                    "can only read namespaced object of this type",
		"/api/v1/namespaces/storage/secrets/attach-n1":       unrelated,
		"/api/v1/namespaces/default/persistentvolumeclaims":  "can only get individual resources of this type",
		"/apis/apps/v1/deployments":                          "",
		"/api/v1/namespaces/default/serviceaccounts/another": unrelated,
	} {
		err := e.n1.RESTClient().Get().RequestURI(path).Do(ctx(t)).Error()
		if !apierrors.IsForbidden(err) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/api/v1/services", "/apis/node.k8s.io/v1/runtimeclasses", "/apis/storage.k8s.io/v1/csidrivers", "/api/v1/namespaces/default/serviceaccounts/default"} {
		if err := e.n1.RESTClient().Get().RequestURI(path).Do(ctx(t)).Error(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	// The name alone makes no node.
	if err := clientset(t, e.as("system:node:n1", "people")).RESTClient().Get().RequestURI("/api/v1/services").Do(ctx(t)).Error(); !apierrors.IsForbidden(err) {
		t.Errorf("without the group: %v", err)
	}
	// What a pod referred to is lost with it.
	zero := int64(0)
	if err := e.typed.CoreV1().Pods("default").Delete(ctx(t), "on-n1", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.n1.CoreV1().Secrets("default").Get(ctx(t), "key-n1", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("after the pod went: %v", err)
	}
}

// TestNodeRestriction tries what a node may not write.
func TestNodeRestriction(t *testing.T) {
	e := startNodes(t)
	core := e.n1.CoreV1()
	forbidden := func(what, want string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	allowed := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	patch := func(node, patch string, sub ...string) error {
		_, err := core.Nodes().Patch(ctx(t), node, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, sub...)
		return err
	}
	forbidden("another node", `node "n1" is not allowed to modify node "n2"`, patch("n2", `{"metadata":{"labels":{"a":"b"}}}`))
	forbidden("another node's status", `node "n1" is not allowed to modify node "n2"`, patch("n2", `{"status":{"phase":"Running"}}`, "status"))
	forbidden("restricted label", `is not allowed to modify labels: node-restriction.kubernetes.io/x`, patch("n1", `{"metadata":{"labels":{"node-restriction.kubernetes.io/x":"y"}}}`))
	forbidden("unknown label", `is not allowed to modify labels: foo.k8s.io/x`, patch("n1", `{"metadata":{"labels":{"foo.k8s.io/x":"y"}}}`))
	forbidden("taints", `node "n1" is not allowed to modify taints`, patch("n1", `{"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]}}`))
	forbidden("owners", `node "n1" is not allowed to modify ownerReferences`, patch("n1", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n2","uid":"u"}]}}`))
	allowed("own labels", patch("n1", `{"metadata":{"labels":{"a":"b","topology.kubernetes.io/zone":"z","kubelet.kubernetes.io/x":"y"}}}`))
	allowed("own status", patch("n1", `{"status":{"nodeInfo":{"kernelVersion":"6"}}}`, "status"))
	forbidden("delete itself", "", core.Nodes().Delete(ctx(t), "n1", metav1.DeleteOptions{}))

	status := func(pod, patch string) error {
		_, err := core.Pods("default").Patch(ctx(t), pod, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		return err
	}
	allowed("own pod's status", status("on-n1", `{"status":{"phase":"Running"}}`))
	forbidden("another's pod", `node "n1" can only update pod status for pods with spec.nodeName set to itself`, status("on-n2", `{"status":{"phase":"Running"}}`))
	forbidden("labels", `node "n1" cannot update labels through pod status`, status("on-n1", `{"metadata":{"labels":{"a":"b"}}}`))
	forbidden("delete", `node "n1" can only delete pods with spec.nodeName set to itself`, core.Pods("default").Delete(ctx(t), "on-n2", metav1.DeleteOptions{}))
	forbidden("evict", `node n1 can only evict pods with spec.nodeName set to itself`, core.Pods("default").EvictV1(ctx(t), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "on-n2"}}))
	forbidden("update", "", func() error {
		_, err := core.Pods("default").Patch(ctx(t), "on-n1", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
		return err
	}())
	e.mirrorPods(forbidden, allowed)
	e.nodeTokens(forbidden, allowed)

	lease := func(namespace, name string) error {
		_, err := e.n1.CoordinationV1().Leases(namespace).Create(ctx(t), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	e.namespace("kube-node-lease")
	forbidden("lease elsewhere", `can only access leases in the "kube-node-lease" system namespace`, lease("default", "n1"))
	forbidden("another's lease", "can only access node lease with the same name as the requesting node", lease("kube-node-lease", "n2"))
	allowed("own lease", lease("kube-node-lease", "n1"))
	csi := func(name string) error {
		_, err := e.n1.StorageV1().CSINodes().Create(ctx(t), &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	forbidden("another's CSINode", "can only access CSINode with the same name as the requesting node", csi("n2"))
	allowed("own CSINode", csi("n1"))
}

// mirrorPods tries to make pods that stand for files on the node.
func (e *nodeEnv) mirrorPods(forbidden func(string, string, error), allowed func(string, error)) {
	t := e.t
	node, err := e.typed.CoreV1().Nodes().Get(ctx(t), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	create := func(change func(*corev1.Pod)) error {
		pod := simplePod("mirror")
		pod.Spec.NodeName = "n1"
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: node.UID, Controller: ptr(true)}}
		change(pod)
		_, err := e.n1.CoreV1().Pods("default").Create(ctx(t), pod, metav1.CreateOptions{})
		return err
	}
	forbidden("no mirror", `pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods`, create(func(p *corev1.Pod) { p.Annotations = nil }))
	forbidden("another's mirror", `node "n1" can only create pods with spec.nodeName set to itself`, create(func(p *corev1.Pod) { p.Spec.NodeName = "n2" }))
	forbidden("without owner", `node "n1" can only create pods with an owner reference set to itself`, create(func(p *corev1.Pod) { p.OwnerReferences = nil }))
	forbidden("wrong UID", `node n1 UID mismatch: expected other got `, create(func(p *corev1.Pod) { p.OwnerReferences[0].UID = "other" }))
	forbidden("config map", `node "n1" can not create pods that reference configmaps`, create(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}}}}
	}))
	allowed("mirror", create(func(*corev1.Pod) {}))
}

// nodeTokens tries to get tokens of service accounts.
func (e *nodeEnv) nodeTokens(forbidden func(string, string, error), allowed func(string, error)) {
	t := e.t
	token := func(spec authenticationv1.TokenRequestSpec) error {
		_, err := e.n1.CoreV1().ServiceAccounts("default").CreateToken(ctx(t), "default", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		return err
	}
	bound := func(node string) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "on-" + node, UID: e.pods[node].UID}
	}
	forbidden("unbound token", "node requested token not bound to a pod", token(authenticationv1.TokenRequestSpec{}))
	forbidden("no UID", "node requested token with a pod binding without a uid", token(authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "on-n1"}}))
	forbidden("another's pod", "node requested token bound to a pod scheduled on a different node", token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n2")}))
	forbidden("audience", `system:node:n1 is not authorized to request tokens for audience "vault"`, token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n1"), Audiences: []string{"vault"}}))
	forbidden("audiences", `node may only request 0 or 1 audiences`, token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n1"), Audiences: []string{"a", "b"}}))
	forbidden("another driver's audience", `not authorized to request tokens for audience "csi-n2"`, token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n1"), Audiences: []string{"csi-n2"}}))
	allowed("the driver's audience", token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n1"), Audiences: []string{"csi-n1"}}))
	e.grant("default", rbacv1.Subject{Kind: "Group", Name: client.GroupNodes}, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"hub"}, Verbs: []string{"request-serviceaccounts-token-audience"}})
	allowed("an audience by role", token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n1"), Audiences: []string{"hub"}}))
	allowed("own pod's token", token(authenticationv1.TokenRequestSpec{BoundObjectRef: bound("n1")}))
}
