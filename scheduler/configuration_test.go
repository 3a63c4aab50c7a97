package scheduler

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

const configurationHead = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"

func parse(t *testing.T, text string) *Configuration {
	t.Helper()
	c, err := ParseConfiguration([]byte(configurationHead + text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestConfigurationErrors: what a file cannot say is told, with its place.
func TestConfigurationErrors(t *testing.T) {
	for text, want := range map[string]string{
		"profiles: [{plugins: {filter: {disabled: [{name: Nothing}]}}}]":                          `profiles[0]: plugins.filter: plugin "Nothing" is not known`,
		"profiles: [{plugins: {nowhere: {}}}]":                                                    "plugins.nowhere: there is no such extension point",
		"profiles: [{schedulerName: a}, {schedulerName: a}]":                                      `profiles[1].schedulerName: there is another profile "a"`,
		"profiles: [{plugins: {multiPoint: {disabled: [{name: DefaultBinder}]}}}]":                "DefaultBinder cannot be disabled",
		"podInitialBackoffSeconds: 20":                                                            "podMaxBackoffSeconds: must be greater than or equal to PodInitialBackoffSeconds",
		"extenders: [{filterVerb: filter}]":                                                       "extenders[0]: urlPrefix: must not be empty",
		"extenders: [{urlPrefix: 'http://x', prioritizeVerb: p}]":                                 "extenders[0]: weight: must have a positive weight applied to it",
		"extenders: [{urlPrefix: 'http://x', bindVerb: b}, {urlPrefix: 'http://y', bindVerb: b}]": "found 2 extenders implementing bind",
		"colour: red": `unknown field "colour"`,
		"profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultConstraints: [{maxSkew: 0, topologyKey: k, whenUnsatisfiable: ScheduleAnyway}]}}]}]": "defaultConstraints[0].maxSkew: must be greater than zero",
		"profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Best}}}]}]":                                                          `scoringStrategy.type: "Best" is not known`,
		"profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}]":                                                             "hardPodAffinityWeight: not in valid range [0-100]",
	} {
		if _, err := ParseConfiguration([]byte(configurationHead + text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", text, err, want)
		}
	}
	if _, err := ParseConfiguration([]byte("kind: Pod")); err == nil {
		t.Error("a Pod is no configuration")
	}
}

// two is a cluster of two equal nodes, of which b has a pod that asks for half.
func two(p *Profile) (*Cluster, func(string) *pod) {
	c := NewCluster()
	for _, name := range []string{"a", "b"} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, "zone": "z" + name}}}
		n.Status.Allocatable = quantities(map[corev1.ResourceName]string{"cpu": "4", "memory": "4Gi", "pods": "10", "example.com/gpu": "0"})
		c.SetNode(n)
	}
	make := func(text string) *pod {
		object := &corev1.Pod{}
		if err := yaml.Unmarshal([]byte(text), object); err != nil {
			panic(err)
		}
		complete(object, object.Name)
		made := newPod(object)
		made.profile = p
		return made
	}
	c.Assign(make(`{metadata: {name: there, labels: {app: web}}, spec: {containers: [{name: x, resources: {requests: {cpu: 2, memory: 2Gi}}}]}}`).object, "b", true)
	return c, make
}

const oneCPU = `{metadata: {name: new, labels: {app: web}}, spec: {containers: [{name: x, resources: {requests: {cpu: 1, memory: 1Gi}}}]}}`

// TestProfiles: what a profile says changes where a pod goes.
func TestProfiles(t *testing.T) {
	only := func(plugin string) string {
		return "plugins: {multiPoint: {disabled: [{name: '*'}], enabled: [{name: " + plugin + "}]}}"
	}
	for _, tt := range []struct{ name, profile, pod, want string }{
		{"default", "", oneCPU, "a"},
		{"most allocated", "pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}}]", oneCPU, "b"},
		{"ratio", "pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio, resources: [{name: cpu, weight: 1}], requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}}}]", oneCPU, "b"},
		{"enforced", "pluginConfig: [{name: NodeAffinity, args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [zb]}]}]}}}}]", oneCPU, "b"},
		{"enforced and nowhere", "pluginConfig: [{name: NodeAffinity, args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [zc]}]}]}}}}]", oneCPU,
			"0/2 nodes are available: 2 node(s) didn't match scheduler-enforced node affinity. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."},
		{"preferred", "{" + only("NodeAffinity") + ", pluginConfig: [{name: NodeAffinity, args: {addedAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: zone, operator: In, values: [zb]}]}}]}}}]}", oneCPU, "b"},
		{"no fit", "plugins: {filter: {disabled: [{name: NodeResourcesFit}]}}", strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 100"), "a"},
		{"fit", "", strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 100"), "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."},
		{"no preemption", "plugins: {postFilter: {disabled: [{name: DefaultPreemption}]}}", strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 100"), "0/2 nodes are available: 2 Insufficient cpu."},
		{"ignored resources", "pluginConfig: [{name: NodeResourcesFit, args: {ignoredResourceGroups: [example.com]}}]", strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 1, example.com/gpu: 3"), "a"},
		{"resources", "", strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 1, example.com/gpu: 3"), "0/2 nodes are available: 2 Insufficient example.com/gpu. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."},
		{"weights", "plugins: {score: {disabled: [{name: NodeResourcesFit}], enabled: [{name: NodeResourcesFit, weight: 5}]}}", oneCPU, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := parse(t, "profiles:\n- "+orSelf(tt.profile)).Profiles[0]
			c, make := two(p)
			d := c.schedule(make(tt.pod), &Circumstances{})
			if got := d.Node + d.Message; got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func orSelf(s string) string {
	if s == "" {
		return "{}"
	}
	return s
}

// TestSpreadDefaults: the constraints of a profile hold for pods that have none and belong together.
func TestSpreadDefaults(t *testing.T) {
	p := parse(t, "profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]}}]}]").Profiles[0]
	c, make := two(p)
	pod := make(strings.Replace(oneCPU, "spec: {", "spec: {nodeSelector: {zone: zb}, ", 1))
	var about Circumstances
	about.spreadDefaults(pod.object, p, NewSiblings("default", labels.SelectorFromSet(labels.Set{"app": "web"})))
	if d := c.schedule(pod, &about); d.Node != "b" { // only its own zone counts, by its selector
		t.Errorf("got %q: %s", d.Node, d.Message)
	}
	// Where both zones count, the second pod goes to the other.
	pod = make(oneCPU)
	about = Circumstances{}
	about.spreadDefaults(pod.object, p, NewSiblings("default", labels.SelectorFromSet(labels.Set{"app": "web"})))
	cand := c.candidate(pod, &about)
	cand.pod.spread = about.spread
	cand.spread = c.spreadFor(cand.pod, true)
	if why := c.fits(cand, c.nodes["b"], nil); len(why) != 1 || why[0] != reasonSpread {
		t.Errorf("b: %v", why)
	}
	about = Circumstances{}
	about.spreadDefaults(pod.object, p, nil)
	if len(about.spread) != 0 || about.Siblings != nil {
		t.Errorf("a pod alone: %+v", about)
	}
}

// TestExtender: an extender is asked in upstream's form, and its answers count.
func TestExtender(t *testing.T) {
	answer := map[string]any{}
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var args map[string]json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&args); err != nil {
			t.Error(err)
		}
		asked = append(asked, strings.TrimPrefix(r.URL.Path, "/x/")+" "+string(args["NodeNames"]))
		if a := answer[r.URL.Path]; a != nil {
			_ = json.NewEncoder(w).Encode(a)
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer server.Close()
	conf := parse(t, fmt.Sprintf("extenders: [{urlPrefix: '%s/x', filterVerb: filter, prioritizeVerb: prioritize, weight: 100, preemptVerb: preempt, bindVerb: bind, nodeCacheCapable: true, httpTimeout: 2s}]", server.URL))
	run := func(text string) Decision {
		asked = nil
		c, make := two(conf.Profiles[0])
		c.extenders = conf.Extenders
		return c.schedule(make(text), &Circumstances{})
	}
	answer["/x/filter"] = map[string]any{"NodeNames": []string{"a", "b"}}
	answer["/x/prioritize"] = []map[string]any{{"Host": "b", "Score": 10}}
	if d := run(oneCPU); d.Node != "b" {
		t.Errorf("prioritized: %+v", d)
	}
	if want := []string{`filter ["a","b"]`, `prioritize ["a","b"]`}; !slices.Equal(asked, want) {
		t.Errorf("asked %v", asked)
	}
	answer["/x/filter"] = map[string]any{"NodeNames": []string{"b"}, "FailedNodes": map[string]string{"a": "not here"}}
	if d := run(oneCPU); d.Node != "b" {
		t.Errorf("filtered: %+v", d)
	}
	answer["/x/filter"] = map[string]any{"NodeNames": []string{}, "FailedNodes": map[string]string{"a": "not here"}, "FailedAndUnresolvableNodes": map[string]string{"b": "never"}}
	if d := run(oneCPU); d.Message != "0/2 nodes are available: 1 never, 1 not here. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling." {
		t.Errorf("refused: %+v", d)
	}
	answer["/x/filter"] = map[string]any{"Error": "broken"}
	if d := run(oneCPU); d.err == nil || d.Message != "broken" {
		t.Errorf("broken: %+v", d)
	}
	conf.Extenders[0].Ignorable = true
	if d := run(oneCPU); d.err != nil || d.Node == "" {
		t.Errorf("ignorable: %+v", d)
	}
	conf.Extenders[0].Ignorable = false

	// Preemption: the extender may leave fewer candidates.
	big := strings.Replace(strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 4"), "spec: {", "spec: {priority: 9, nodeSelector: {zone: zb}, ", 1)
	answer["/x/preempt"] = map[string]any{"NodeNameToMetaVictims": map[string]any{"b": map[string]any{"Pods": []map[string]any{{"UID": "there"}}}}}
	if d := run(big); d.Nominated != "b" || len(d.Victims) != 1 {
		t.Errorf("preempting: %+v", d)
	}
	answer["/x/preempt"] = map[string]any{"NodeNameToMetaVictims": map[string]any{}}
	if d := run(big); d.Nominated != "" || len(d.Victims) != 0 {
		t.Errorf("not preempting: %+v", d)
	}
	answer["/x/bind"] = map[string]any{}
	p := &corev1.Pod{}
	if err := conf.Extenders[0].bind(p, "a"); err != nil {
		t.Error(err)
	}
	answer["/x/bind"] = map[string]any{"Error": "no"}
	if err := conf.Extenders[0].bind(p, "a"); err == nil || err.Error() != "no" {
		t.Error(err)
	}
}

// TestManagedResources: an extender is asked about the pods that it is for, and what it accounts for is left to it.
func TestManagedResources(t *testing.T) {
	conf := parse(t, "extenders: [{urlPrefix: 'http://127.0.0.1:1', filterVerb: filter, managedResources: [{name: example.com/gpu, ignoredByScheduler: true}]}]\npodInitialBackoffSeconds: 2\npodMaxBackoffSeconds: 3")
	c, make := two(conf.Profiles[0])
	c.extenders = conf.Extenders
	if d := c.schedule(make(oneCPU), &Circumstances{}); d.Node != "a" {
		t.Errorf("a pod that does not concern it: %+v", d)
	}
	if d := c.schedule(make(strings.ReplaceAll(oneCPU, "cpu: 1", "cpu: 1, example.com/gpu: 3")), &Circumstances{}); d.err == nil {
		t.Errorf("a pod that does: %+v", d)
	}
	if conf.FirstBackoff != 2*time.Second || conf.MostBackoff != 3*time.Second {
		t.Errorf("back-off %v to %v", conf.FirstBackoff, conf.MostBackoff)
	}
}
