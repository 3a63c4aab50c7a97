package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/store"
	"coracle.dev/coracle/store/memory"
)

var testKinds = api.NewRegistry(builtin.Kinds()...)

// state is a snapshot of a store that holds objects, each by the canonical name of its resource.
func state(t testing.TB, objects map[string][]api.Object) store.Snapshot {
	t.Helper()
	s := memory.New(client.StoreOptions(testKinds, 0))
	t.Cleanup(func() { s.Close() })
	for name, list := range objects {
		for _, o := range list {
			key := store.Key{Resource: name, Namespace: o.GetNamespace(), Name: o.GetName()}
			if _, _, err := s.Commit(context.Background(), store.Txn{Ops: []store.Op{{Key: key, Object: o, Expect: store.ExpectAbsent}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s.Snapshot()
}

// asked is a request and what was said to its client.
type asked struct {
	Request
	warnings []string
	audit    map[string]string
}

func ask(snap store.Snapshot, op Operation, resource, subresource string, obj, old api.Object) *asked {
	a := &asked{audit: map[string]string{}}
	a.Request = Request{Operation: op, Kind: testKinds.ByName(resource), Subresource: subresource, Object: obj, Old: old, Snapshot: snap,
		Now:      time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC),
		Warn:     func(text string) { a.warnings = append(a.warnings, text) },
		Annotate: func(key, value string) { a.audit[key] = value },
		User:     client.User{Name: "jane", Groups: []string{client.GroupAuthenticated}}}
	for _, o := range []api.Object{obj, old} {
		if o != nil {
			a.Namespace, a.Name = o.GetNamespace(), o.GetName()
			break
		}
	}
	return a
}

// run takes a request through one plug-in and gives the error's text.
func (a *asked) run(p Plugin) string {
	for _, f := range []func(context.Context, *Request) error{p.Mutate, p.Validate} {
		if f != nil {
			if err := f(context.Background(), &a.Request); err != nil {
				return err.Error()
			}
		}
	}
	return ""
}

func labelled(labels ...string) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"kubernetes.io/metadata.name": "ns"}}}
	for i := 0; i < len(labels); i += 2 {
		ns.Labels["pod-security.kubernetes.io/"+labels[i]] = labels[i+1]
	}
	return ns
}

// pods of the three levels.
func podOf(level string) *corev1.Pod {
	yes, no := true, false
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: level}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "main", Image: "a", SecurityContext: &corev1.SecurityContext{}}}}}
	switch sc := pod.Spec.Containers[0].SecurityContext; level {
	case "privileged":
		sc.Privileged = &yes
	case "restricted":
		sc.RunAsNonRoot, sc.AllowPrivilegeEscalation = &yes, &no
		sc.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
		sc.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	return pod
}

// TestPodSecurityLevels: for each level and mode, a pod of a level passes exactly if it is as strict.
func TestPodSecurityLevels(t *testing.T) {
	levels := []string{"privileged", "baseline", "restricted"}
	for enforce, e := range levels {
		for warn, w := range levels {
			for audit, a := range levels {
				snap := state(t, map[string][]api.Object{"namespaces": {labelled("enforce", e, "warn", w, "audit", a, "audit-version", "v1.37")}})
				for have, level := range levels {
					q := ask(snap, Create, "pods", "", podOf(level), nil)
					got := q.run(podSecurity())
					if refused := have < enforce; refused != strings.HasPrefix(got, fmt.Sprintf(`pods %q is forbidden: violates PodSecurity "%s:latest": `, level, e)) {
						t.Errorf("enforce=%s, a %s pod: %q", e, level, got)
					}
					if warned := have >= enforce && have < warn; warned != (len(q.warnings) == 1) {
						t.Errorf("enforce=%s warn=%s, a %s pod: warnings %q", e, w, level, q.warnings)
					}
					if marked := have < audit; marked != strings.HasPrefix(q.audit["pod-security.kubernetes.io/audit-violations"], fmt.Sprintf(`would violate PodSecurity "%s:v1.37": `, a)) {
						t.Errorf("audit=%s, a %s pod: %q", a, level, q.audit)
					}
					if q.audit["pod-security.kubernetes.io/enforce-policy"] != e+":latest" {
						t.Errorf("enforce=%s: %q", e, q.audit)
					}
				}
			}
		}
	}
}

func TestPodSecurityOfTemplatesAndUpdates(t *testing.T) {
	snap := state(t, map[string][]api.Object{"namespaces": {labelled("enforce", "restricted")}})
	plain := podOf("baseline")
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: appsv1.DeploymentSpec{
		Template: corev1.PodTemplateSpec{Spec: plain.Spec}}}
	q := ask(snap, Create, "deployments.apps", "", d, nil)
	if err := q.run(podSecurity()); err != "" || len(q.warnings) != 1 || !strings.HasPrefix(q.warnings[0], `would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false`) {
		t.Errorf("a deployment: %q, %q", err, q.warnings)
	}
	if q = ask(snap, Update, "deployments.apps", "scale", nil, nil); q.run(podSecurity()) != "" {
		t.Error("scaling is looked at")
	}
	for name, c := range map[string]struct {
		change      func(*corev1.Pod)
		subresource string
		refused     bool
	}{
		"labels":    {change: func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }},
		"image":     {change: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "b" }, refused: true},
		"status":    {change: func(p *corev1.Pod) { p.Spec.Containers[0].Image = "b" }, subresource: "status"},
		"ephemeral": {change: addEphemeral, subresource: "ephemeralcontainers", refused: true},
	} {
		now := plain.DeepCopy()
		c.change(now)
		q := ask(snap, Update, "pods", c.subresource, now, plain)
		q.Namespace = "ns"
		if err := q.run(podSecurity()); (err != "") != c.refused {
			t.Errorf("%s: %q", name, err)
		}
	}
}

func addEphemeral(p *corev1.Pod) {
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "x"}}}
}

func TestPodSecurityOfNamespaces(t *testing.T) {
	var pods []api.Object
	for i := range 4 {
		p := podOf("baseline")
		p.Name = fmt.Sprintf("web-%d", i)
		if i > 0 {
			controller := true
			p.OwnerReferences = []metav1.OwnerReference{{UID: "rs", Controller: &controller}}
		}
		pods = append(pods, p)
	}
	pods = append(pods, podOf("privileged"), podOf("restricted"))
	snap := state(t, map[string][]api.Object{"pods": pods})
	q := ask(snap, Update, "namespaces", "", labelled("enforce", "restricted", "enforce-version", "v1.36"), labelled())
	want := []string{
		`existing pods in namespace "ns" violate the new PodSecurity enforce level "restricted:v1.36"`,
		"privileged: privileged, allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile",
		"web-0 (and 3 other pods): allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile",
	}
	if err := q.run(podSecurity()); err != "" || !slices.Equal(q.warnings, want) {
		t.Errorf("%q\n%s", err, strings.Join(q.warnings, "\n"))
	}
	for name, c := range map[string]struct {
		now, old *corev1.Namespace
		err      string
	}{
		"unknown level":     {now: labelled("warn", "x"), err: `Namespace "ns" is invalid: metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: "x": must be one of privileged, baseline, restricted`},
		"unknown version":   {now: labelled("enforce-version", "v2"), err: `Namespace "ns" is invalid: metadata.labels[pod-security.kubernetes.io/enforce-version]: Invalid value: "v2": must be "latest" or "v1.x"`},
		"was wrong already": {now: labelled("warn", "x"), old: labelled("warn", "x")},
		"looser":            {now: labelled("enforce", "baseline"), old: labelled("enforce", "restricted")},
		"only warned of":    {now: labelled("warn", "restricted"), old: labelled()},
	} {
		op, old := Create, api.Object(nil)
		if c.old != nil {
			op, old = Update, c.old
		}
		q := ask(snap, op, "namespaces", "", c.now, old)
		if err := q.run(podSecurity()); err != c.err || len(q.warnings) > 0 {
			t.Errorf("%s: %q %q", name, err, q.warnings)
		}
	}
}

func BenchmarkPodSecurity(b *testing.B) {
	for _, level := range []string{"", "baseline", "restricted"} {
		b.Run("enforce="+level, func(b *testing.B) {
			ns := labelled()
			if level != "" {
				ns = labelled("enforce", level)
			}
			snap := state(b, map[string][]api.Object{"namespaces": {ns}})
			q, p := ask(snap, Create, "pods", "", podOf("restricted"), nil), podSecurity()
			b.ReportAllocs()
			for b.Loop() {
				if err := p.Validate(context.Background(), &q.Request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// grants allows verbs on signers to everybody.
func grants(allowed ...string) Access {
	return func(_ context.Context, _ client.User, verb, resource, _, name string) bool {
		return slices.Contains(allowed, verb+" "+resource+" "+name)
	}
}

func TestRightsToSigners(t *testing.T) {
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "c"},
		Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: "example.com/s"}}
	signed := csr.DeepCopy()
	signed.Status.Certificate = []byte("x")
	bundle := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: "example.com/s"}}
	finalized := bundle.DeepCopy()
	finalized.Finalizers = []string{"a/b"}
	open := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "b"}}
	request := &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r"}, Spec: certificatesv1.PodCertificateRequestSpec{SignerName: "example.com/s"}}
	issued, late := request.DeepCopy(), request.DeepCopy()
	now, then := metav1.NewTime(time.Date(2026, 7, 1, 12, 4, 0, 0, time.UTC)), metav1.NewTime(time.Date(2026, 7, 1, 12, 6, 0, 0, time.UTC))
	issued.Status.NotBefore, late.Status.NotBefore = &now, &then
	const requests, bundles, pods = signingRequests, trustBundles, podRequests
	for name, c := range map[string]struct {
		op                    Operation
		resource, subresource string
		obj, old              api.Object
		grant, want           string
	}{
		"approve":            {Update, requests, "approval", csr, csr, "", `certificatesigningrequests.certificates.k8s.io "c" is forbidden: user not permitted to approve requests with signerName "example.com/s"`},
		"may approve":        {Update, requests, "approval", csr, csr, "approve signers example.com/s", ""},
		"may approve all":    {Update, requests, "approval", csr, csr, "approve signers example.com/*", ""},
		"other verb":         {Update, requests, "approval", csr, csr, "sign signers example.com/s", `certificatesigningrequests.certificates.k8s.io "c" is forbidden: user not permitted to approve requests with signerName "example.com/s"`},
		"sign":               {Update, requests, "status", signed, csr, "", `certificatesigningrequests.certificates.k8s.io "c" is forbidden: user not permitted to sign requests with signerName "example.com/s"`},
		"sign nothing":       {Update, requests, "status", csr, csr, "", ""},
		"may sign":           {Update, requests, "status", signed, csr, "sign signers example.com/s", ""},
		"attest":             {Create, bundles, "", bundle, nil, "", `clustertrustbundles.certificates.k8s.io "b" is forbidden: user not permitted to attest for signerName "example.com/s"`},
		"attest, finalizers": {Update, bundles, "", finalized, bundle, "", ""},
		"attest nobody":      {Create, bundles, "", open, nil, "", ""},
		"may attest":         {Create, bundles, "", bundle, nil, "attest signers example.com/*", ""},
		"sign for a pod":     {Update, pods, "status", issued, request, "", `PodCertificateRequest.certificates.k8s.io "r" is invalid: spec.signerName: Forbidden: User "jane" is not permitted to "sign" for signer "example.com/s"`},
		"may sign for a pod": {Update, pods, "status", issued, request, "sign signers example.com/s", ""},
		"not yet valid":      {Update, pods, "status", late, request, "sign signers example.com/s", `PodCertificateRequest.certificates.k8s.io "r" is invalid: status.notBefore: Invalid value: "2026-07-01T12:06:00Z": must be set to within 5 minutes of kube-apiserver's current time`},
	} {
		for _, local := range []bool{false, true} {
			q := ask(state(t, nil), c.op, c.resource, c.subresource, c.obj.DeepCopyObject().(api.Object), c.old)
			q.Local = local
			got := ""
			for _, p := range Certificates(grants(c.grant)) {
				if got = q.run(p); got != "" {
					break
				}
			}
			want := c.want
			if local && !strings.Contains(want, "5 minutes") {
				want = ""
			}
			if got != want {
				t.Errorf("%s (local %v): got  %s\nwant %s", name, local, got, want)
			}
		}
	}
}

func TestNodesRequestForTheirOwnPods(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "pod"}, Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "sa",
		Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{PodCertificate: &corev1.PodCertificateProjection{SignerName: "example.com/s"}}}}}}}}}
	snap := state(t, map[string][]api.Object{
		"nodes": {&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "node"}}}, "pods": {pod},
		"serviceaccounts": {&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sa", UID: "account"}}},
	})
	good := certificatesv1.PodCertificateRequestSpec{SignerName: "example.com/s", PodName: "p", PodUID: "pod", NodeName: "n", NodeUID: "node",
		ServiceAccountName: "sa", ServiceAccountUID: "account"}
	for want, change := range map[string]func(*certificatesv1.PodCertificateRequestSpec){
		"":                                         func(*certificatesv1.PodCertificateRequestSpec) {},
		"which is not the requesting node":         func(s *certificatesv1.PodCertificateRequestSpec) { s.NodeName = "m" },
		"inconsistent with the running node":       func(s *certificatesv1.PodCertificateRequestSpec) { s.NodeUID = "other" },
		`pod "q" not found`:                        func(s *certificatesv1.PodCertificateRequestSpec) { s.PodName = "q" },
		"which differs from running pod":           func(s *certificatesv1.PodCertificateRequestSpec) { s.PodUID = types.UID("x") },
		"that differs from running pod":            func(s *certificatesv1.PodCertificateRequestSpec) { s.ServiceAccountName = "x" },
		"differs from the running service account": func(s *certificatesv1.PodCertificateRequestSpec) { s.ServiceAccountUID = "x" },
		"does not mount a podCertificate":          func(s *certificatesv1.PodCertificateRequestSpec) { s.SignerName = "example.com/t" },
	} {
		r := &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", GenerateName: "req-"}, Spec: good}
		change(&r.Spec)
		q := ask(snap, Create, podRequests, "", r, nil)
		q.User = client.User{Name: "system:node:n", Groups: []string{client.GroupNodes}}
		if got := q.run(podCertificates(grants())); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if q.User = (client.User{Name: "jane"}); q.run(podCertificates(grants())) != "" {
			t.Error("who is no node is held to a node's rules")
		}
	}
}

func TestDefaultPlugins(t *testing.T) {
	growing := true
	claim := func(class, size, phase string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"},
			Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}},
			Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.PersistentVolumeClaimPhase(phase)}}
	}
	bound := func(cpu string, generation int64) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", Generation: generation}, Spec: corev1.PodSpec{NodeName: "n",
			Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}}}}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}}
	snap := state(t, map[string][]api.Object{"nodes": {node}, "storageclasses.storage.k8s.io": {
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "grow"}, AllowVolumeExpansion: &growing},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fixed"}}}})
	for name, c := range map[string]struct {
		now, old *corev1.PersistentVolumeClaim
		want     string
	}{
		"grow":    {claim("grow", "2Gi", "Bound"), claim("grow", "1Gi", "Bound"), ""},
		"same":    {claim("fixed", "1Gi", "Bound"), claim("fixed", "1Gi", "Bound"), ""},
		"fixed":   {claim("fixed", "2Gi", "Bound"), claim("fixed", "1Gi", "Bound"), "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"},
		"unbound": {claim("grow", "2Gi", "Pending"), claim("grow", "1Gi", "Pending"), "Only bound persistent volume claims can be expanded"},
	} {
		if got := ask(snap, Update, "persistentvolumeclaims", "", c.now, c.old).run(claimResize()); !strings.HasSuffix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s: %q", name, got)
		}
	}
	fresh := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m"}}
	for range 2 {
		ask(snap, Create, "nodes", "", fresh, nil).run(taintNodes())
	}
	if len(fresh.Spec.Taints) != 1 || fresh.Spec.Taints[0].Key != corev1.TaintNodeNotReady || fresh.Spec.Taints[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("taints %v", fresh.Spec.Taints)
	}
	pod := bound("1", 1)
	if err := ask(snap, Create, "pods", "", pod, nil).run(podTopologyLabels()); err != "" || pod.Labels[corev1.LabelTopologyZone] != "z" {
		t.Errorf("%q %v", err, pod.Labels)
	}
	if got := ask(snap, Update, "pods", "resize", bound("3", 2), bound("1", 1)).run(podResize()); !strings.HasSuffix(got, "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000") {
		t.Errorf("%q", got)
	}
	if got := ask(snap, Update, "pods", "resize", bound("2", 2), bound("1", 1)).run(podResize()); got != "" {
		t.Errorf("%q", got)
	}
	init := func(cpu string, generation int64) *corev1.Pod {
		p := bound("1", generation)
		p.Spec.InitContainers = bound(cpu, 1).Spec.Containers
		return p
	}
	if got := ask(snap, Update, "pods", "resize", init("2", 2), init("1", 1)).run(nodeDeclaredFeatures()); !strings.HasSuffix(got, `which are not available on node "n"`) {
		t.Errorf("%q", got)
	}
	if got := ask(snap, Update, "pods", "resize", bound("2", 2), bound("1", 1)).run(nodeDeclaredFeatures()); got != "" {
		t.Errorf("%q", got)
	}
}
