package volume

import (
	"fmt"
	"sort"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// show prints a payload as lines "path mode owner content".
func show(p payload) string {
	var lines []string
	for path, f := range p {
		owner, content := "-", string(f.data)
		if f.user != nil {
			owner = fmt.Sprint(*f.user)
		}
		if f.token != nil {
			content = fmt.Sprintf("token(%s/%s aud=%q %ds for %s)", f.token.Namespace, f.token.ServiceAccount,
				f.token.Audience, f.token.ExpirationSeconds, f.token.PodName)
		}
		lines = append(lines, fmt.Sprintf("%s %04o %s %s", path, f.mode, owner, content))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func TestPlanFiles(t *testing.T) {
	s := newStore(t,
		&corev1.ConfigMap{ObjectMeta: meta("default", "cm"), Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}},
		&corev1.Secret{ObjectMeta: meta("default", "sec"), Data: map[string][]byte{"pw": []byte("hunter2"), "a": []byte("S")}},
		&corev1.ConfigMap{ObjectMeta: meta("other", "cm"), Data: map[string]string{"a": "not ours"}},
		&corev1.Node{ObjectMeta: meta("", "node-a"), Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			"cpu": resource.MustParse("3500m"), "memory": resource.MustParse("7Gi")}}},
	)
	const containers = `containers: [{name: app, resources: {limits: {memory: 64Mi}, requests: {cpu: 250m, memory: 32Mi}}}]`
	for _, c := range []struct {
		name, pod, volume, want, err string
	}{
		{name: "config map, all keys", volume: `configMap: {name: cm}`,
			want: "a 0644 - 1\nb 0644 - 2\nbin 0644 - \x00\x01"},
		{name: "config map, items and modes", volume: `configMap: {name: cm, defaultMode: 0400, items: [{key: a, path: x/y//z}, {key: b, path: b, mode: 0777}]}`,
			want: "b 0777 - 2\nx/y/z 0400 - 1"},
		{name: "config map missing", volume: `configMap: {name: nope}`, err: `configmap "nope" not found`},
		{name: "config map missing, optional", volume: `configMap: {name: nope, optional: true}`},
		{name: "config map key missing", volume: `configMap: {name: cm, items: [{key: q, path: q}]}`,
			err: "configmap references non-existent config key: q"},
		{name: "config map key missing, optional", volume: `configMap: {name: cm, optional: true, items: [{key: q, path: q}, {key: a, path: a}]}`,
			want: "a 0644 - 1"},
		{name: "secret", volume: `secret: {secretName: sec, defaultMode: 0440, items: [{key: pw, path: pw}]}`,
			want: "pw 0440 - hunter2"},
		{name: "secret missing", volume: `secret: {secretName: nope}`, err: `secret "nope" not found`},
		{name: "secret key missing", volume: `secret: {secretName: sec, items: [{key: q, path: q}]}`,
			err: "references non-existent secret key: q"},
		{name: "projected, the later wins", volume: `projected: {sources: [{configMap: {name: cm}}, {secret: {name: sec, items: [{key: a, path: a, mode: 0600}]}}]}`,
			want: "a 0600 - S\nb 0644 - 2\nbin 0644 - \x00\x01"},
		{name: "projected, all failures", volume: `projected: {sources: [{configMap: {name: x}}, {secret: {name: z}}]}`,
			err: `[configmap "x" not found, secret "z" not found]`},
		{name: "token", volume: `projected: {defaultMode: 0644, sources: [{serviceAccountToken: {path: token, expirationSeconds: 3607}}]}`,
			want: `token 0644 - token(default/robot aud="" 3607s for web)`},
		{name: "token for a user", pod: `{securityContext: {runAsUser: 1000}, ` + `containers: [{name: app}, {name: b, securityContext: {runAsUser: 1000}}]}`,
			volume: `projected: {sources: [{serviceAccountToken: {path: token, audience: vault}}]}`,
			want:   `token 0600 1000 token(default/robot aud="vault" 3600s for web)`},
		{name: "token, users differ", pod: `{securityContext: {runAsUser: 1000}, ` + `containers: [{name: app}, {name: b, securityContext: {runAsUser: 7}}]}`,
			volume: `projected: {sources: [{serviceAccountToken: {path: token}}]}`,
			want:   `token 0644 - token(default/robot aud="" 3600s for web)`},
		{name: "token for a group", pod: `{securityContext: {fsGroup: 2000}, ` + containers + `}`,
			volume: `projected: {sources: [{serviceAccountToken: {path: token}}]}`,
			want:   `token 0600 - token(default/robot aud="" 3600s for web)`},
		{name: "downward", volume: `downwardAPI: {items: [
			{path: name, fieldRef: {fieldPath: metadata.name}}, {path: labels, fieldRef: {fieldPath: metadata.labels}},
			{path: one, fieldRef: {fieldPath: "metadata.annotations['a.b/c']"}, mode: 0400},
			{path: cpu, resourceFieldRef: {containerName: app, resource: limits.cpu, divisor: "1"}},
			{path: mem, resourceFieldRef: {containerName: app, resource: limits.memory, divisor: 1Mi}}]}`,
			want: "cpu 0644 - 4\nlabels 0644 - app=\"web\"\nmulti=\"a\\nb\"\nmem 0644 - 64\nname 0644 - web\none 0400 - note"},
		{name: "downward, wrong", volume: `downwardAPI: {items: [{path: x, fieldRef: {fieldPath: spec.x}}, {path: y, resourceFieldRef: {containerName: nix, resource: limits.cpu}}]}`,
			err: "[unsupported fieldPath: spec.x, container nix not found]"},
		{name: "path leaves", volume: `configMap: {name: cm, items: [{key: a, path: a/../../x}]}`,
			err: "invalid path: must not contain '..': a/../../x"},
		{name: "path clashes", volume: `configMap: {name: cm, items: [{key: a, path: a}, {key: b, path: a/b}]}`,
			err: `conflicting paths: "a" is both a file and the directory of "a/b"`},
		{name: "pod certificate", volume: `projected: {sources: [{podCertificate: {signerName: a/b, keyType: ED25519, keyPath: k, certificateChainPath: c}}]}`,
			want: "c 0644 - \nk 0644 - "},
		{name: "pod certificate for a user", pod: `{securityContext: {runAsUser: 1000}, ` + containers + `}`,
			volume: `projected: {sources: [{podCertificate: {signerName: a/b, keyType: ED25519, credentialBundlePath: b}}]}`, want: "b 0600 1000 "},
		{name: "trust bundle missing", volume: `projected: {sources: [{clusterTrustBundle: {name: x, path: ca}}]}`,
			err: `clustertrustbundle.certificates.k8s.io "x" not found`},
		{name: "trust bundle optional", volume: `projected: {sources: [{clusterTrustBundle: {name: x, path: ca, optional: true}}]}`, want: "ca 0644 - "},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1",
				Labels: map[string]string{"app": "web", "multi": "a\nb"}, Annotations: map[string]string{"a.b/c": "note"}}}
			spec := c.pod
			if spec == "" {
				spec = "{" + containers + "}"
			}
			decode(t, spec, &pod.Spec)
			pod.Spec.ServiceAccountName = "robot"
			vol := corev1.Volume{Name: "v"}
			decode(t, strings.ReplaceAll(c.volume, "\t", " "), &vol.VolumeSource)
			got, err := planFiles(s.Snapshot(), pod, &vol, "node-a")
			if fmt.Sprint(err) != c.err && !(err == nil && c.err == "") {
				t.Fatalf("error %v, want %s", err, c.err)
			}
			if err == nil && show(got) != c.want {
				t.Fatalf("got\n%s\nwant\n%s", show(got), c.want)
			}
		})
	}
}

// decode reads YAML; its octal numbers are octal.
func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func meta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name}
}

func TestFieldValue(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "n", UID: "u", Labels: map[string]string{"k": "v"}},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "sa"},
		Status: corev1.PodStatus{HostIP: "1.1.1.1", PodIP: "2.2.2.2",
			HostIPs: []corev1.HostIP{{IP: "1.1.1.1"}, {IP: "::1"}}, PodIPs: []corev1.PodIP{{IP: "2.2.2.2"}, {IP: "::2"}}},
	}
	for path, want := range map[string]string{
		"metadata.name": "n", "metadata.namespace": "ns", "metadata.uid": "u", "metadata.labels": `k="v"`, "metadata.annotations": "",
		"metadata.labels['k']": "v", "metadata.labels['none']": "", "spec.nodeName": "node", "spec.serviceAccountName": "sa",
		"status.hostIP": "1.1.1.1", "status.hostIPs": "1.1.1.1,::1", "status.podIP": "2.2.2.2", "status.podIPs": "2.2.2.2,::2",
		"metadata.labels['']":                "error: invalid key subscript in metadata.labels['']: name part must be non-empty;name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
		"metadata.name['k']":                 `error: fieldPath "metadata.name['k']" does not support subscript`,
		"status.phase":                       "error: unsupported fieldPath: status.phase",
		"metadata.annotations['UPPER.io/X']": "",
	} {
		got, err := FieldValue(pod, path)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestResourceValue(t *testing.T) {
	pod := &corev1.Pod{}
	decode(t, `{initContainers: [{name: i, resources: {limits: {cpu: 100m}}}], containers: [
		{name: a, resources: {limits: {cpu: 1500m, memory: 100Mi, ephemeral-storage: 1Gi, hugepages-2Mi: 4Mi}, requests: {cpu: 1m, memory: 1}}},
		{name: b}]}`, &pod.Spec)
	node := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("8Gi"), "ephemeral-storage": resource.MustParse("100Gi")}
	for _, c := range []struct{ container, res, divisor, want string }{
		{"a", "limits.cpu", "0", "2"},
		{"a", "limits.cpu", "1m", "1500"},
		{"a", "limits.cpu", "1", "2"},
		{"a", "requests.cpu", "1", "1"},
		{"a", "limits.memory", "0", "104857600"},
		{"a", "limits.memory", "1Mi", "100"},
		{"a", "limits.memory", "1Gi", "1"},
		{"a", "requests.memory", "1Ki", "1"},
		{"a", "limits.ephemeral-storage", "1Mi", "1024"},
		{"a", "limits.hugepages-2Mi", "1Mi", "4"},
		{"b", "limits.cpu", "1m", "4000"},
		{"b", "limits.memory", "1Gi", "8"},
		{"b", "requests.memory", "1", "0"},
		{"b", "limits.hugepages-2Mi", "1", "0"},
		{"i", "limits.cpu", "1m", "100"},
		{"none", "limits.cpu", "1", "error: container none not found"},
		{"a", "limits.gpu", "1", "error: unsupported container resource : limits.gpu"},
		{"a", "cpu", "1", "error: unsupported container resource : cpu"},
	} {
		sel := &corev1.ResourceFieldSelector{Resource: c.res, Divisor: resource.MustParse(c.divisor)}
		got, err := ResourceValue(pod, c.container, sel, node)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s / %s: %s, want %s", c.container, c.res, c.divisor, got, c.want)
		}
	}
	pod.Spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}
	if got, _ := ResourceValue(pod, "b", &corev1.ResourceFieldSelector{Resource: "limits.memory"}, node); got != "1073741824" {
		t.Errorf("the pod's own limit is not seen: %s", got)
	}
}

func TestUniqueAnchors(t *testing.T) {
	const a = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	const b = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n"
	if got := string(uniqueAnchors([]string{"x\n" + b + a, a, b})); got != a+b {
		t.Errorf("%s", got)
	}
}

func TestMemorySize(t *testing.T) {
	node := &corev1.Node{Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}}
	q := func(s string) *resource.Quantity { v := resource.MustParse(s); return &v }
	limited, half := &corev1.Pod{}, &corev1.Pod{}
	decode(t, `{containers: [{name: a, resources: {limits: {memory: 100Mi}}}, {name: b, resources: {limits: {memory: 28Mi}}}]}`, &limited.Spec)
	decode(t, `{containers: [{name: a, resources: {limits: {memory: 100Mi}}}, {name: b}]}`, &half.Spec)
	for i, c := range []struct {
		pod   *corev1.Pod
		limit *resource.Quantity
		node  *corev1.Node
		want  int64
	}{
		{half, nil, node, 1 << 30},
		{half, q("2Gi"), node, 1 << 30},
		{half, q("10Mi"), node, 10 << 20},
		{limited, nil, node, 128 << 20},
		{limited, q("64Mi"), node, 64 << 20},
		{half, nil, nil, 0},
	} {
		if got := memorySize(c.pod, c.limit, c.node); got != c.want {
			t.Errorf("%d: %d, want %d", i, got, c.want)
		}
	}
}

func FuzzPaths(f *testing.F) {
	for _, p := range []string{"a", "a/b", "../x", "..data", "a/../b", "/etc/passwd", "..", ".", "a//b/", "", " ", "..2026_x/y", "a\x00b", "...", "x/..data"} {
		f.Add(p, "a")
	}
	f.Fuzz(func(t *testing.T, p, q string) {
		files := payload{p: {data: []byte("1"), mode: 0o600}, q: {data: []byte("2"), mode: 0o600}}
		for path := range files {
			if err := checkPath(path); err != nil {
				return
			}
		}
		cleaned, err := clean(files)
		if err != nil {
			return
		}
		checkWritten(t, cleaned)
	})
}
