package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/client"
	"coracle.dev/coracle/container"
	"coracle.dev/coracle/node/record"
	"coracle.dev/coracle/reconcile/reconciletest"
	"coracle.dev/coracle/volume"
)

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"":             "",
		"plain":        "plain",
		"$(A)":         "1",
		"x$(A)y$(A)":   "x1y1",
		"$(B)":         "$(A)", // values are not expanded again
		"$(NONE)":      "$(NONE)",
		"$(EMPTY)x":    "x",
		"$$(A)":        "$(A)",
		"$$$(A)":       "$1",
		"$A":           "$A",
		"$":            "$",
		"cost: 5$":     "cost: 5$",
		"$(A":          "$(A",
		"$$$$":         "$$",
		"a$(A)$(NONE)": "a1$(NONE)",
	} {
		if got := expand(in, lookup); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// cluster makes a cluster in memory with some objects.
func clusterWith(t *testing.T, objs map[string][]api.Object) *reconciletest.Cluster {
	t.Helper()
	c := reconciletest.NewCluster(0)
	create := func(resource string, o api.Object) {
		if _, err := c.Create(context.Background(), resource, o, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	for resource, list := range objs {
		for _, o := range list {
			create(resource, o)
		}
	}
	return c
}

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: ports, Selector: map[string]string{"a": "b"}}}
}

func TestEnvironment(t *testing.T) {
	c := clusterWith(t, map[string][]api.Object{
		"configmaps": {&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"}, Data: map[string]string{"k1": "v1", "k2": "v2", "X": "from cm"}}},
		"secrets":    {&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sec", Namespace: "default"}, Data: map[string][]byte{"pw": []byte("geheim")}}},
		"services": {
			service("kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}),
			service("my-db", "10.96.0.7", corev1.ServicePort{Name: "sql-port", Port: 5432, Protocol: corev1.ProtocolTCP}, corev1.ServicePort{Name: "udp", Port: 53, Protocol: corev1.ProtocolUDP}),
			service("headless", "None", corev1.ServicePort{Port: 80}),
		},
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vars"), []byte("# comment\nFROM_FILE='in\nlines' # more\nOTHER=''\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := podOf("web", "a: run")
	pod.UID, pod.Labels = "u1", map[string]string{"app": "x"}
	pod.Status.PodIP, pod.Status.PodIPs = "10.1.0.9", []corev1.PodIP{{IP: "10.1.0.9"}, {IP: "fd00::9"}}
	e := environment{snap: c.Snapshot(), pod: pod, allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")},
		mounts: map[string]volume.Mount{"files": {HostPath: dir}}}
	ref := func(src corev1.EnvVarSource) *corev1.EnvVarSource { return &src }
	s := &pod.Spec.Containers[0]
	s.EnvFrom = []corev1.EnvFromSource{
		{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}},
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}, Optional: ptr(true)}},
	}
	s.Env = []corev1.EnvVar{
		{Name: "X", Value: "mine $(k1) $(P_k2) $(KUBERNETES_SERVICE_HOST) $(LATER)"},
		{Name: "LATER", Value: "l"},
		{Name: "PW", ValueFrom: ref(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "sec"}, Key: "pw"}})},
		{Name: "NOPE", ValueFrom: ref(corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "none", Optional: ptr(true)}})},
		{Name: "APP", ValueFrom: ref(corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}})},
		{Name: "IPS", ValueFrom: ref(corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIPs"}})},
		{Name: "CPUS", ValueFrom: ref(corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}})},
		{Name: "FILE", ValueFrom: ref(corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{VolumeName: "files", Path: "vars", Key: "FROM_FILE"}})},
		{Name: "EMPTY"},
	}
	pod.Spec.EnableServiceLinks = ptr(true)
	got, err := e.of(s)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, v := range got {
		lines = append(lines, v.name+"="+v.value)
	}
	for _, want := range []string{
		"P_k1=v1", "P_X=from cm", "k2=v2", "X=mine v1 v2 10.96.0.1 $(LATER)", "PW=geheim", "APP=x", "IPS=10.1.0.9,fd00::9", "CPUS=4", "FILE=in\nlines", "EMPTY=",
		"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443", "KUBERNETES_PORT=tcp://10.96.0.1:443",
		"MY_DB_SERVICE_HOST=10.96.0.7", "MY_DB_SERVICE_PORT_SQL_PORT=5432", "MY_DB_PORT_5432_TCP=tcp://10.96.0.7:5432", "MY_DB_PORT_5432_TCP_ADDR=10.96.0.7",
		"MY_DB_PORT_53_UDP_PROTO=udp", "MY_DB_PORT_53_UDP_PORT=53",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is missing", want)
		}
	}
	all := strings.Join(lines, "\n")
	if strings.Contains(all, "NOPE") || strings.Contains(all, "HEADLESS") {
		t.Error(all)
	}
	pod.Spec.EnableServiceLinks = ptr(false)
	got, _ = e.of(s)
	if slices.ContainsFunc(got, func(v variable) bool { return strings.HasPrefix(v.name, "MY_DB") }) ||
		!slices.ContainsFunc(got, func(v variable) bool { return v.name == "KUBERNETES_SERVICE_HOST" }) {
		t.Error("without service links only those of the API server are wanted")
	}
	for want, v := range map[string]corev1.EnvVarSource{
		`configmap "none" not found`:                   {ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k"}},
		"couldn't find key k9 in ConfigMap default/cm": {ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "k9"}},
		`secret "none" not found`:                      {SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k"}},
		"couldn't find key k9 in Secret default/sec":   {SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "sec"}, Key: "k9"}},
	} {
		s.Env = []corev1.EnvVar{{Name: "E", ValueFrom: &v}}
		if _, err := e.of(s); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	s.Env, s.EnvFrom = nil, []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}}}}
	if _, err := e.of(s); err == nil || err.Error() != `secret "missing" not found` {
		t.Error(err)
	}
}

func TestResolver(t *testing.T) {
	host := parseResolver([]byte("# c\nnameserver 1.1.1.1\nnameserver 2.2.2.2 ; x\ndomain old\nsearch corp.example lan\noptions timeout:1 rotate\n"))
	show := func(d container.DNS) string {
		return strings.Join(d.Servers, ",") + " " + strings.Join(d.Searches, ",") + " " + strings.Join(d.Options, ",")
	}
	for _, tc := range []struct {
		name   string
		edit   func(*corev1.PodSpec)
		want   string
		noDNS  bool
		warned bool
	}{
		{"cluster first", func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSClusterFirst },
			"10.96.0.10 default.svc.cluster.local,svc.cluster.local,cluster.local,corp.example,lan ndots:5", false, false},
		{"default", func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSDefault }, "1.1.1.1,2.2.2.2 corp.example,lan timeout:1,rotate", false, false},
		{"host network", func(s *corev1.PodSpec) { s.DNSPolicy, s.HostNetwork = corev1.DNSClusterFirst, true }, "1.1.1.1,2.2.2.2 corp.example,lan timeout:1,rotate", false, false},
		{"host network with cluster", func(s *corev1.PodSpec) { s.DNSPolicy, s.HostNetwork = corev1.DNSClusterFirstWithHostNet, true },
			"10.96.0.10 default.svc.cluster.local,svc.cluster.local,cluster.local,corp.example,lan ndots:5", false, false},
		{"none", func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSNone
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"9.9.9.9"}, Searches: []string{"a.b"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("2")}, {Name: "edns0"}}}
		}, "9.9.9.9 a.b ndots:2,edns0", false, false},
		{"merged", func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSDefault
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"2.2.2.2", "3.3.3.3", "4.4.4.4"}, Searches: []string{"lan", "x"}, Options: []corev1.PodDNSConfigOption{{Name: "timeout", Value: ptr("9")}}}
		}, "1.1.1.1,2.2.2.2,3.3.3.3 corp.example,lan,x timeout:9,rotate", false, false},
		{"no cluster DNS", func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSClusterFirst }, "1.1.1.1,2.2.2.2 corp.example,lan timeout:1,rotate", true, true},
	} {
		pod := podOf("web", "a: run")
		tc.edit(&pod.Spec)
		servers := []string{"10.96.0.10"}
		if tc.noDNS {
			servers = nil
		}
		got, warn := podResolver(pod, host, servers, "cluster.local")
		if show(got) != tc.want || (warn != "") != tc.warned {
			t.Errorf("%s:\n got %s %q\nwant %s", tc.name, show(got), warn, tc.want)
		}
	}
}

func TestHostNames(t *testing.T) {
	for _, tc := range []struct {
		edit func(*corev1.Pod)
		want string
	}{
		{func(p *corev1.Pod) {}, "web||web <nil>"},
		{func(p *corev1.Pod) { p.Name = strings.Repeat("a", 62) + ".b" }, strings.Repeat("a", 62) + "||" + strings.Repeat("a", 62) + " <nil>"},
		{func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "h", "s" }, "h|s.default.svc.cluster.local|h <nil>"},
		{func(p *corev1.Pod) { p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "s", ptr(true) }, "web|s.default.svc.cluster.local|web.s.default.svc.cluster.local <nil>"},
		{func(p *corev1.Pod) { p.Spec.HostnameOverride = ptr("other.example") }, "other.example||other.example <nil>"},
		{func(p *corev1.Pod) { p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = strings.Repeat("s", 60), ptr(true) },
			"|| failed to construct FQDN from pod hostname and cluster domain, FQDN web." + strings.Repeat("s", 60) + ".default.svc.cluster.local is too long (64 characters is the max, 90 characters requested)"},
	} {
		p := podOf("web", "a: run")
		tc.edit(p)
		h, d, k, err := hostnames(p, "cluster.local")
		if got := fmt.Sprintf("%s|%s|%s %v", h, d, k, err); got != tc.want {
			t.Errorf("got %s\nwant %s", got, tc.want)
		}
	}
}

func TestHostsFile(t *testing.T) {
	p := podOf("web", "a: run")
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"foo", "bar"}}}
	got := string(hostsFile(p, []string{"10.1.0.2", "fd00::2"}, "web", "s.default.svc.cluster.local", nil))
	for _, want := range []string{"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n", "10.1.0.2\tweb.s.default.svc.cluster.local\tweb\nfd00::2\tweb.s.default.svc.cluster.local\tweb\n",
		"\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	p.Spec.HostNetwork = true
	got = string(hostsFile(p, nil, "web", "", []byte("127.0.0.1 localhost\n")))
	if !strings.HasPrefix(got, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n# Entries added") {
		t.Error(got)
	}
}

func TestQualityOfService(t *testing.T) {
	res := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	for _, tc := range []struct {
		name     string
		req, lim corev1.ResourceList
		class    corev1.PodQOSClass
		group    string
		pod      string // shares quota memory of the pod's cgroup
		own      string // the same of the container's, and its score
	}{
		{"nothing", nil, nil, corev1.PodQOSBestEffort, "kubepods/besteffort/podu1", "2 0 0", "2 -1 -1 1000"},
		{"requests", res("500m", "1Gi"), nil, corev1.PodQOSBurstable, "kubepods/burstable/podu1", "512 0 0", "512 -1 -1 875"},
		{"limits", res("500m", "1Gi"), res("500m", "1Gi"), corev1.PodQOSGuaranteed, "kubepods/podu1", "512 50000 1073741824", "512 50000 1073741824 -997"},
		{"limit of one", res("100m", ""), res("", "64Mi"), corev1.PodQOSBurstable, "kubepods/burstable/podu1", "102 0 67108864", "102 -1 67108864 999"},
		{"tiny", res("1m", ""), res("1m", ""), corev1.PodQOSBurstable, "kubepods/burstable/podu1", "2 1000 0", "2 1000 -1 999"},
	} {
		pod := podOf("web", "a: run")
		pod.UID = "u1"
		c := &pod.Spec.Containers[0]
		c.Resources = corev1.ResourceRequirements{Requests: tc.req, Limits: tc.lim}
		p, own := podResources(pod), containerResources(pod, c)
		if qosClass(pod) != tc.class || podCgroup(pod) != tc.group {
			t.Errorf("%s: %s %s", tc.name, qosClass(pod), podCgroup(pod))
		}
		if got := fmt.Sprint(p.CPUShares, " ", p.CPUQuota, " ", p.Memory); got != tc.pod {
			t.Errorf("%s: pod %s, want %s", tc.name, got, tc.pod)
		}
		if got := fmt.Sprint(own.CPUShares, " ", own.CPUQuota, " ", own.Memory, " ", oomScoreAdj(pod, c, 8<<30)); got != tc.own {
			t.Errorf("%s: container %s, want %s", tc.name, got, tc.own)
		}
	}
}

func TestNonRoot(t *testing.T) {
	for _, tc := range []struct {
		user  *int64
		image string
		want  string
	}{
		{nil, "1000", ""},
		{nil, "1000:1000", ""},
		{ptr(int64(5)), "", ""},
		{ptr(int64(0)), "1000", `container's runAsUser breaks non-root policy (pod: "web_default(u1)", container: a)`},
		{nil, "", `container has runAsNonRoot and image will run as root (pod: "web_default(u1)", container: a)`},
		{nil, "0", `container has runAsNonRoot and image will run as root (pod: "web_default(u1)", container: a)`},
		{nil, "nginx", `container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root (pod: "web_default(u1)", container: a)`},
	} {
		pod := podOf("web", "a: run")
		pod.UID = "u1"
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr(true)}
		c := &pod.Spec.Containers[0]
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: tc.user}
		err := verifyNonRoot(pod, c, effectiveSecurity(pod, c), tc.image)
		if got := fmt.Sprint(err); got != tc.want && !(err == nil && tc.want == "") {
			t.Errorf("user %v, image %q: %v", tc.user, tc.image, err)
		}
	}
}

func TestContainerConfig(t *testing.T) {
	pod := podOf("web")
	pod.UID = "u1"
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(7)), RunAsGroup: ptr(int64(8)), FSGroup: ptr(int64(9)),
		SupplementalGroups: []int64{10}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	c := containerOf("a: $(CMD) $$(X)")
	c.Args = []string{"$(ARG)", "$(NONE)"}
	c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(70)), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}}, ProcMount: ptr(corev1.UnmaskedProcMount)}
	c.Lifecycle = &corev1.Lifecycle{StopSignal: ptr(corev1.SIGQUIT)}
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: ptr(corev1.RecursiveReadOnlyEnabled)},
		{Name: "v", MountPath: "/sub", SubPathExpr: "x/$(ARG)", MountPropagation: ptr(corev1.MountPropagationBidirectional)},
		{Name: "ro", MountPath: "rel"},
		{Name: "img", MountPath: "/img", SubPath: "etc"},
	}
	c.VolumeDevices = []corev1.VolumeDevice{{Name: "blk", DevicePath: "/dev/xvda"}}
	pod.Spec.Containers = []corev1.Container{c}
	l := &launch{pod: pod, spec: &pod.Spec.Containers[0], role: record.RoleMain, id: "cid", attempt: 3, sandboxID: "sid",
		image: container.Image{ID: "sha256:1", Config: container.ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}}},
		env:   []variable{{"CMD", "cmd"}, {"ARG", "arg"}}, etcHosts: "/hosts", messageFile: "/msg",
		mounts: map[string]volume.Mount{"v": {HostPath: "/h/v"}, "ro": {HostPath: "/h/ro", ReadOnly: true}, "img": {Image: "i"}, "blk": {HostPath: "/dev/loop9", Block: true}},
		subPath: func(_ context.Context, m volume.Mount, name string, index int, sub string) (string, error) {
			return fmt.Sprintf("safe:%s:%s:%d:%s", m.HostPath, name, index, sub), nil
		},
	}
	cfg, err := l.config(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
		}
	}
	check("args", cfg.Args, []string{"cmd", "$(X)", "arg", "$(NONE)"})
	check("user", fmt.Sprint(*cfg.User.UID, *cfg.User.GID, cfg.User.Groups), "70 8 [10 9]")
	check("flags", []bool{cfg.ReadonlyRootfs, cfg.NoNewPrivileges, cfg.UnmaskedProc, cfg.Privileged}, []bool{true, true, true, false})
	check("capabilities", cfg.Capabilities, container.Capabilities{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}})
	check("seccomp", cfg.Seccomp.Mode, container.SeccompDefault)
	check("signal", cfg.StopSignal, "SIGQUIT")
	check("log", cfg.Log.Path, "a/3.log")
	check("mounts", cfg.Mounts, []container.Mount{
		{HostPath: "/h/v", ContainerPath: "/v", ReadOnly: true, RecursiveReadOnly: true},
		{HostPath: "safe:/h/v:v:1:x/arg", ContainerPath: "/sub", Propagation: container.PropagationBidirectional},
		{HostPath: "/h/ro", ContainerPath: "/rel", ReadOnly: true},
		{Image: "i", ImageSubPath: "etc", ContainerPath: "/img"},
		{HostPath: "/hosts", ContainerPath: "/etc/hosts", ReadOnly: true},
		{HostPath: "/msg", ContainerPath: "/dev/termination-log"},
	})
	check("devices", cfg.Devices, []container.Device{{HostPath: "/dev/loop9", ContainerPath: "/dev/xvda", Permissions: "mrw"}})

	l.spec.VolumeMounts[1].SubPathExpr = "$(UNSET)"
	if _, err := l.config(context.Background()); err == nil || err.Error() != `missing value for "UNSET"` {
		t.Error(err)
	}
	l.spec.VolumeMounts = []corev1.VolumeMount{{Name: "gone", MountPath: "/x"}}
	if _, err := l.config(context.Background()); err == nil || err.Error() != `cannot find volume "gone" to mount into container "a"` {
		t.Error(err)
	}
	l.spec.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/etc/hosts"}}
	l.spec.SecurityContext.Privileged = ptr(true)
	cfg, err = l.config(context.Background())
	if err != nil || len(cfg.Mounts) != 2 || !cfg.Privileged || cfg.Seccomp.Mode != container.SeccompUnconfined {
		t.Errorf("%v %+v", err, cfg)
	}
}

func TestSandboxConfig(t *testing.T) {
	pod := podOf("web", "a: run")
	pod.UID = "u1"
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net/ipv4/ip_local_port_range", Value: "1 2"}, {Name: "kernel.shm_rmid_forced", Value: "1"}}}
	cfg, err := sandboxConfig(pod, "id", 2, container.DNS{}, "cluster.local", "/logs", "n1")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Sysctls["net.ipv4.ip_local_port_range"] != "1 2" || cfg.Sysctls["kernel.shm_rmid_forced"] != "1" ||
		cfg.LogDir != "/logs/default_web_u1" || cfg.Labels[record.Grace] != "30" || cfg.Namespaces.PID != container.NamespaceContainer {
		t.Errorf("%+v", cfg)
	}
	id, ok := record.Of(cfg.Labels)
	if !ok || id != (record.ID{Namespace: "default", Pod: "web", UID: "u1", Attempt: 2}) {
		t.Errorf("%+v", id)
	}
	pod.Spec.HostNetwork, pod.Spec.HostPID, pod.Spec.HostIPC = true, true, true
	if n := namespaces(pod); n.Net != container.NamespaceHost || n.PID != container.NamespaceHost || n.IPC != container.NamespaceHost {
		t.Errorf("%+v", n)
	}
	pod.Spec.HostPID, pod.Spec.ShareProcessNamespace = false, ptr(true)
	if n := namespaces(pod); n.PID != container.NamespaceSandbox {
		t.Errorf("%+v", n)
	}
}

func TestRegistryMatches(t *testing.T) {
	for _, tc := range []struct {
		key, image string
		want       bool
	}{
		{"reg.example.com", "reg.example.com/a/b:1", true},
		{"https://reg.example.com/v2/", "reg.example.com/a", true},
		{"*.example.com", "reg.example.com/a", true},
		{"*.example.com", "a.b.example.com/a", false},
		{"reg.example.com/team", "reg.example.com/team/app", true},
		{"reg.example.com/team", "reg.example.com/other/app", false},
		{"reg.example.com:5000", "reg.example.com:5000/a", true},
		{"reg.example.com", "reg.example.com:5000/a", false},
		{"https://index.docker.io/v1/", "busybox", true},
		{"docker.io", "library/busybox:1.36", true},
		{"docker.io", "docker.io/team/app", true},
		{"reg.example.com", "busybox", false},
	} {
		if got := registryMatches(trimRegistry(tc.key), tc.image); got != tc.want {
			t.Errorf("%s %s: %v", tc.key, tc.image, got)
		}
	}
}
