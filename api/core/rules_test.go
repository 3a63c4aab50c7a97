package core_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
)

// list makes a resource list from "cpu=1 memory=1Gi".
func list(s string) corev1.ResourceList {
	var l corev1.ResourceList
	for pair := range strings.FieldsSeq(s) {
		name, amount, _ := strings.Cut(pair, "=")
		if l == nil {
			l = corev1.ResourceList{}
		}
		l[corev1.ResourceName(name)] = resource.MustParse(amount)
	}
	return l
}

func container(requests, limits string) corev1.Container {
	return corev1.Container{Resources: corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}
}

func TestQOSClass(t *testing.T) {
	for _, c := range []struct {
		name string
		spec corev1.PodSpec
		want corev1.PodQOSClass
	}{
		{"nothing", corev1.PodSpec{Containers: []corev1.Container{{}}}, "BestEffort"},
		{"zero", corev1.PodSpec{Containers: []corev1.Container{container("cpu=0", "")}}, "BestEffort"},
		{"other resources", corev1.PodSpec{Containers: []corev1.Container{container("example.com/gpu=1", "example.com/gpu=1")}}, "BestEffort"},
		{"request", corev1.PodSpec{Containers: []corev1.Container{container("cpu=1", "")}}, "Burstable"},
		{"equal", corev1.PodSpec{Containers: []corev1.Container{container("cpu=1 memory=1Gi", "cpu=1000m memory=1024Mi")}}, "Guaranteed"},
		{"cpu alone", corev1.PodSpec{Containers: []corev1.Container{container("cpu=1", "cpu=1")}}, "Burstable"},
		{"less", corev1.PodSpec{Containers: []corev1.Container{container("cpu=1 memory=1Gi", "cpu=2 memory=1Gi")}}, "Burstable"},
		{"one without", corev1.PodSpec{Containers: []corev1.Container{container("cpu=1 memory=1Gi", "cpu=1 memory=1Gi"), {}}}, "Burstable"},
		{"init without", corev1.PodSpec{
			InitContainers: []corev1.Container{{}},
			Containers:     []corev1.Container{container("cpu=1 memory=1Gi", "cpu=1 memory=1Gi")},
		}, "Burstable"},
		{"pod level", corev1.PodSpec{
			Resources:  &corev1.ResourceRequirements{Requests: list("cpu=1 memory=1Gi"), Limits: list("cpu=1 memory=1Gi")},
			Containers: []corev1.Container{{}},
		}, "Guaranteed"},
		{"pod level, limits alone", corev1.PodSpec{
			Resources:  &corev1.ResourceRequirements{Limits: list("cpu=1 memory=1Gi")},
			Containers: []corev1.Container{{}},
		}, "Burstable"},
	} {
		if got := core.QOSClass(&corev1.Pod{Spec: c.spec}); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestPodGrace(t *testing.T) {
	kind := api.NewRegistry(core.Kinds()...).ByName("pods")
	seconds := func(n int64) *int64 { return &n }
	for _, c := range []struct {
		name      string
		node      string
		phase     corev1.PodPhase
		spec      *int64
		requested *int64
		want      int64
	}{
		{"unscheduled", "", "Pending", seconds(30), nil, 0},
		{"unscheduled, asked", "", "Pending", seconds(30), seconds(10), 0},
		{"pending on a node", "n", "Pending", seconds(30), nil, 30},
		{"running", "n", "Running", seconds(30), nil, 30},
		{"running, asked", "n", "Running", seconds(30), seconds(5), 5},
		{"running, forced", "n", "Running", seconds(30), seconds(0), 0},
		{"running, asked below zero", "n", "Running", seconds(30), seconds(-5), 1},
		{"running, below zero", "n", "Running", seconds(-5), nil, 1},
		{"ended", "n", "Succeeded", seconds(30), nil, 0},
		{"failed", "n", "Failed", seconds(30), seconds(10), 0},
	} {
		p := &corev1.Pod{
			Spec:   corev1.PodSpec{NodeName: c.node, TerminationGracePeriodSeconds: c.spec},
			Status: corev1.PodStatus{Phase: c.phase},
		}
		if got := kind.Grace(p, c.requested); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestPodHelpers(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	if core.PodReady(p) || core.PodTerminal(p) || core.PodCondition(p, corev1.PodReady) != nil {
		t.Error("an empty pod is ready or has ended")
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
	if core.PodReady(p) {
		t.Error("a pod that is not ready is")
	}
	core.PodCondition(p, corev1.PodReady).Status = corev1.ConditionTrue
	if !core.PodReady(p) {
		t.Error("a ready pod is not")
	}
	if name := core.EphemeralClaimName(p, &corev1.Volume{Name: "v"}); name != "p-v" {
		t.Errorf("claim %q", name)
	}
	always := corev1.ContainerRestartPolicyAlways
	p.Spec.InitContainers = []corev1.Container{container("cpu=1 memory=3Gi", ""), container("cpu=500m", "")}
	p.Spec.InitContainers[1].RestartPolicy = &always
	p.Spec.Containers = []corev1.Container{container("cpu=1", ""), container("memory=1Gi", "")}
	p.Spec.Overhead = list("cpu=100m")
	if got := core.PodRequests(p); !equality.Semantic.DeepEqual(got, list("cpu=1600m memory=3Gi")) {
		t.Errorf("requests %v", got)
	}
}

func TestRestarts(t *testing.T) {
	policy := func(p corev1.ContainerRestartPolicy) *corev1.ContainerRestartPolicy { return &p }
	rules := []corev1.ContainerRestartRule{
		{Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: "In", Values: []int32{42}}},
	}
	for _, c := range []struct {
		name string
		c    corev1.Container
		pod  corev1.RestartPolicy
		code int32
		want bool
	}{
		{"always", corev1.Container{}, "Always", 0, true},
		{"never", corev1.Container{}, "Never", 1, false},
		{"on failure, failed", corev1.Container{}, "OnFailure", 1, true},
		{"on failure, done", corev1.Container{}, "OnFailure", 0, false},
		{"own policy", corev1.Container{RestartPolicy: policy("Never")}, "Always", 1, false},
		{"a rule", corev1.Container{RestartPolicy: policy("Never"), RestartPolicyRules: rules}, "Always", 42, true},
		{"no rule", corev1.Container{RestartPolicy: policy("Never"), RestartPolicyRules: rules}, "Always", 41, false},
	} {
		if got := core.Restarts(&c.c, &corev1.PodSpec{RestartPolicy: c.pod}, c.code); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestPackSubsets holds that packing packed subsets changes nothing, and what it does to some.
func TestPackSubsets(t *testing.T) {
	address := func(ip, uid string) corev1.EndpointAddress {
		return corev1.EndpointAddress{IP: ip, TargetRef: &corev1.ObjectReference{UID: types.UID(uid)}}
	}
	port := func(name string, n int32) corev1.EndpointPort {
		return corev1.EndpointPort{Name: name, Port: n, Protocol: "TCP"}
	}
	show := func(list []corev1.EndpointSubset) string {
		var b strings.Builder
		for _, s := range list {
			for _, a := range s.Addresses {
				fmt.Fprintf(&b, "%s ", a.IP)
			}
			for _, a := range s.NotReadyAddresses {
				fmt.Fprintf(&b, "!%s ", a.IP)
			}
			for _, p := range s.Ports {
				fmt.Fprintf(&b, ":%d ", p.Port)
			}
			b.WriteString("/ ")
		}
		return b.String()
	}
	for _, c := range []struct {
		name string
		in   []corev1.EndpointSubset
		want string
	}{
		{"nothing", nil, ""},
		{"no ports", []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}}}, "10.0.0.1 / "},
		{"ports of one address join", []corev1.EndpointSubset{
			{Addresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}, Ports: []corev1.EndpointPort{port("b", 81)}},
			{Addresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}, Ports: []corev1.EndpointPort{port("a", 80)}},
		}, "10.0.0.1 :80 :81 / "},
		{"addresses of one port join", []corev1.EndpointSubset{
			{Addresses: []corev1.EndpointAddress{address("10.0.0.2", "b")}, Ports: []corev1.EndpointPort{port("a", 80)}},
			{NotReadyAddresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}, Ports: []corev1.EndpointPort{port("a", 80)}},
		}, "10.0.0.2 !10.0.0.1 :80 / "},
		{"not ready wins", []corev1.EndpointSubset{
			{Addresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}, Ports: []corev1.EndpointPort{port("a", 80)}},
			{NotReadyAddresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}, Ports: []corev1.EndpointPort{port("a", 80)}},
		}, "!10.0.0.1 :80 / "},
		{"different ports part", []corev1.EndpointSubset{
			{Addresses: []corev1.EndpointAddress{address("10.0.0.1", "a")}, Ports: []corev1.EndpointPort{port("a", 80), port("c", 90)}},
			{Addresses: []corev1.EndpointAddress{address("10.0.0.2", "b")}, Ports: []corev1.EndpointPort{port("a", 81), port("c", 90)}},
		}, "10.0.0.1 :80 / 10.0.0.1 10.0.0.2 :90 / 10.0.0.2 :81 / "},
	} {
		packed := core.PackSubsets(c.in)
		if got := show(packed); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if again := core.PackSubsets(packed); !equality.Semantic.DeepEqual(again, packed) {
			t.Errorf("%s: packed twice it is %s", c.name, show(again))
		}
	}
}

// TestReusedRules holds the rules that other groups call, in their own places.
func TestReusedRules(t *testing.T) {
	at := field.NewPath("at")
	grace := int64(30)
	template := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	core.DefaultPodTemplate(template)
	if errs := core.ValidatePodTemplateSpec(template, at); len(errs) > 0 {
		t.Errorf("a good template: %v", errs)
	}
	if template.Spec.EnableServiceLinks != nil {
		t.Error("a template has a default that only pods have")
	}
	for _, c := range []struct {
		name string
		errs field.ErrorList
		want string
	}{
		{"template", core.ValidatePodTemplateSpec(&corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a b": ""}},
			Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &grace, RestartPolicy: "Always", DNSPolicy: "Default",
				EphemeralContainers: []corev1.EphemeralContainer{},
			},
		}, at), "at.labels at.spec.containers"},
		{"node selector", core.ValidateNodeSelector(&corev1.NodeSelector{}, at), "at.nodeSelectorTerms"},
		{"topology", core.ValidateTopologySelectorTerm(&corev1.TopologySelectorTerm{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
			{Key: "zone"}, {Key: "zone", Values: []string{"a", "a"}},
		}}, at), "at.matchLabelExpressions[0].values at.matchLabelExpressions[1].values[1] at.matchLabelExpressions[1].key"},
		{"tolerations", core.ValidateTolerations([]corev1.Toleration{{Operator: "Equal"}}, at), "at[0].operator"},
		{"overhead", core.ValidateOverhead(list("odd=1"), at), "at.limits[odd] at.limits[odd]"},
		{"binding", core.ValidatePodBinding(&corev1.Binding{Target: corev1.ObjectReference{Kind: "Service"}}), "target.kind target.name"},
		{"good binding", core.ValidatePodBinding(&corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}), ""},
		{"log", core.ValidatePodLogOptions(&corev1.PodLogOptions{TailLines: new(int64(-1)), LimitBytes: new(int64(0)), SinceSeconds: new(int64(0)), SinceTime: &metav1.Time{}}),
			"tailLines limitBytes []"},
	} {
		var places []string
		for _, e := range c.errs {
			places = append(places, e.Field)
		}
		if got := strings.Join(places, " "); got != c.want {
			t.Errorf("%s: %s, want %s: %v", c.name, got, c.want, c.errs)
		}
	}
	for name, want := range map[string]bool{"a.b:c:d": true, "plain": true, "Bad_": false, "a.b:c:Bad_": false} {
		if got := core.TrustBundleName(name) == nil; got != want {
			t.Errorf("bundle %q: %v", name, got)
		}
	}
}

// TestServiceNeeds holds what the server is to allocate for a service.
func TestServiceNeeds(t *testing.T) {
	no := false
	for _, c := range []struct {
		spec           corev1.ServiceSpec
		ip, port, heal bool
	}{
		{corev1.ServiceSpec{Type: "ClusterIP"}, true, false, false},
		{corev1.ServiceSpec{Type: "NodePort"}, true, true, false},
		{corev1.ServiceSpec{Type: "LoadBalancer"}, true, true, false},
		{corev1.ServiceSpec{Type: "LoadBalancer", AllocateLoadBalancerNodePorts: &no}, true, false, false},
		{corev1.ServiceSpec{Type: "LoadBalancer", ExternalTrafficPolicy: "Local"}, true, true, true},
		{corev1.ServiceSpec{Type: "NodePort", ExternalTrafficPolicy: "Local"}, true, true, false},
		{corev1.ServiceSpec{Type: "ExternalName"}, false, false, false},
	} {
		s := &corev1.Service{Spec: c.spec}
		if ip, port, heal := core.NeedsClusterIP(s), core.NeedsNodePort(s), core.NeedsHealthCheckNodePort(s); ip != c.ip || port != c.port || heal != c.heal {
			t.Errorf("%+v: %v %v %v", c.spec, ip, port, heal)
		}
	}
	if !core.Headless(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{"None"}}}) || core.Headless(&corev1.Service{}) {
		t.Error("headless")
	}
}

// TestManyNamesStayCheap holds that a pod with thousands of names costs no quadratic time: it is
// validated about as fast by the name as a small one.
func TestManyNamesStayCheap(t *testing.T) {
	kind := api.NewRegistry(core.Kinds()...).ByName("pods")
	cost := func(n int) float64 {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		for i := range n {
			name := fmt.Sprintf("n%d", i)
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name})
			c := &p.Spec.Containers[0]
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name})
			c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: int32(1 + i), HostPort: int32(1 + i)})
			c.Env = append(c.Env, corev1.EnvVar{Name: name})
		}
		kind.Default(p)
		return float64(testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				if errs := kind.Validate(p); len(errs) > 0 {
					b.Fatal(errs[0])
				}
				kind.Warnings(p, nil)
			}
		}).NsPerOp()) / float64(n)
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	if small, large := cost(100), cost(4000); large > 8*small {
		t.Errorf("a name costs %.0f ns among 100 and %.0f ns among 4000", small, large)
	}
}
