package builtin

import (
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/apitest"
)

func TestScenarios(t *testing.T) { apitest.Run(t, Kinds(), "testdata/*.txtar") }

// notKinds are the v1 types of client-go's scheme that are no resources of their own.
var notKinds = map[string]string{
	"PodAttachOptions":      "query of a subresource",
	"PodExecOptions":        "query of a subresource",
	"PodLogOptions":         "query of a subresource",
	"PodPortForwardOptions": "query of a subresource",
	"PodProxyOptions":       "query of a subresource",
	"NodeProxyOptions":      "query of a subresource",
	"ServiceProxyOptions":   "query of a subresource",
	"RangeAllocation":       "upstream's own bookkeeping in its store",
	"SerializedReference":   "the content of an annotation",
	"List":                  "a list of anything, on clients only",
	"Eviction":              "body of pods/eviction",
	"Scale":                 "body of the scale subresources",
	"TokenRequest":          "body of serviceaccounts/token",
	"AdmissionReview":       "body of webhook calls",
	"ImageReview":           "body of webhook calls",
}

// TestEveryStableKind holds the registry against everything that client-go knows.
func TestEveryStableKind(t *testing.T) {
	registry := api.NewRegistry(Kinds()...)
	seen := map[schema.GroupVersionKind]bool{}
	for gvk := range scheme.Scheme.AllKnownTypes() {
		stable := gvk.Version == "v1" || gvk.Version == "v2"
		if !stable || strings.HasSuffix(gvk.Kind, "List") && gvk.Kind != "List" || notKinds[gvk.Kind] != "" {
			continue
		}
		obj, err := scheme.Scheme.New(gvk)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(reflect.TypeOf(obj).Elem().PkgPath(), "k8s.io/apimachinery/") {
			continue // options and events of every group
		}
		k := registry.ByKind(gvk.GroupKind())
		if k == nil || k.Version(gvk.Version) == nil {
			t.Errorf("%v is not registered", gvk)
			continue
		}
		seen[gvk] = true
		if got, want := reflect.TypeOf(k.Version(gvk.Version).New()), reflect.TypeOf(obj); got != want {
			t.Errorf("%v is made as %v, not %v", gvk, got, want)
		}
	}
	for _, k := range registry.All() {
		for _, v := range k.Versions {
			gvk := schema.GroupVersionKind{Group: k.Group, Version: v.Name, Kind: k.Kind}
			foreign := k.Group == "apiextensions.k8s.io" || k.Group == "apiregistration.k8s.io" || k.Group == "policy.networking.k8s.io" || k.Group == "gateway.networking.k8s.io"
			if !seen[gvk] && !v.NotServed && !foreign {
				t.Errorf("%v is registered, but client-go does not know it", gvk)
			}
		}
	}
}

// TestKindsAreComplete checks what discovery and tables need of every kind.
func TestKindsAreComplete(t *testing.T) {
	for _, k := range Kinds() {
		if _, ok := GroupPriority[k.Group]; !ok {
			t.Errorf("%s: its group has no priority", k.Name())
		}
		if k.Singular != strings.ToLower(k.Kind) || k.Resource == "" {
			t.Errorf("%s: singular %q of kind %q", k.Name(), k.Singular, k.Kind)
		}
		if k.Virtual {
			continue
		}
		named := false
		for _, c := range k.Columns {
			named = named || c.Name == "Name" && (c.Format == "name" || k.Kind == "Event") // upstream gives events' column no format
			if c.Cell == nil {
				t.Errorf("%s: column %q shows nothing", k.Name(), c.Name)
			}
		}
		if !named {
			t.Errorf("%s: no column with the name", k.Name())
		}
		for _, v := range k.Versions {
			if v.NewList() == nil {
				t.Errorf("%s %s: no list", k.Name(), v.Name)
			}
			if v.Hub == (v.ToHub != nil) || v.Hub == (v.FromHub != nil) {
				t.Errorf("%s %s: conversions are for other versions than the hub", k.Name(), v.Name)
			}
		}
	}
}

// filler makes random objects of the kinds that clients could send.
func filler(seed int64) *randfill.Filler {
	own := func(serializer.CodecFactory) []any {
		return []any{
			func(q *runtime.RawExtension, c randfill.Continue) { q.Raw = []byte(`{"a":1}`) },
			func(s *apiextensionsv1.JSONSchemaProps, c randfill.Continue) { s.Type = "object" },
			func(j *apiextensionsv1.JSON, c randfill.Continue) { j.Raw = []byte(`1`) },
			func(t *metav1.MicroTime, c randfill.Continue) { t.Time = time.Unix(c.Int63n(1e9), 0) },
		}
	}
	return fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, own), rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme)).
		NilChance(0.3).NumElements(0, 3).MaxDepth(12)
}

func random(k *api.Kind, f *randfill.Filler) api.Object {
	obj := k.Hub().New().(api.Object)
	f.Fill(obj)
	return obj
}

const rounds = 30

// TestRandom puts random objects through everything that a kind has. Nothing may panic,
// defaulting must settle at once, and what is old must stay as it was.
func TestRandom(t *testing.T) {
	for _, k := range Kinds() {
		t.Run(k.Name(), func(t *testing.T) {
			f := filler(1)
			for range rounds {
				obj, old := random(k, f), random(k, f)
				if k.Default != nil {
					k.Default(obj)
					k.Default(old)
					again := obj.DeepCopyObject().(api.Object)
					k.Default(again)
					if !equality.Semantic.DeepEqual(obj, again) {
						t.Fatalf("defaulting twice differs from once:\n%+v\n%+v", obj, again)
					}
				}
				exercise(t, k, k.Strategy, obj, old)
				for _, s := range k.Subresources {
					if s.Strategy != nil {
						exercise(t, k, *s.Strategy, obj.DeepCopyObject().(api.Object), old)
					}
				}
				for _, c := range k.Columns {
					switch v := c.Cell(obj, apitest.Now).(type) {
					case string, int64, float64, bool:
					default:
						t.Errorf("column %q gives a %T", c.Name, v)
					}
				}
				for _, f := range k.Fields {
					f(obj)
				}
				for _, f := range k.Indexes {
					f(obj)
				}
			}
		})
	}
}

func exercise(t *testing.T, k *api.Kind, s api.Strategy, obj, old api.Object) {
	t.Helper()
	if s.PrepareCreate != nil {
		s.PrepareCreate(obj.DeepCopyObject().(api.Object))
	}
	before := old.DeepCopyObject().(api.Object)
	if s.PrepareUpdate != nil {
		s.PrepareUpdate(obj, old)
	}
	if s.Validate != nil {
		_ = s.Validate(obj)
	}
	if s.ValidateUpdate != nil {
		_ = s.ValidateUpdate(obj, old)
	}
	if s.Warnings != nil {
		s.Warnings(obj, nil)
		s.Warnings(obj, old)
	}
	if k.Desired != nil {
		k.Desired(obj, old)
		if k.Desired(old, old) {
			t.Error("no change counts as a change of the desired state")
		}
	}
	if !equality.Semantic.DeepEqual(before, old) {
		t.Errorf("the old object was changed:\n%+v\n%+v", before, old)
	}
}

// TestAutoscalerRoundTrip converts v2 objects that are good to v1 and back.
func TestAutoscalerRoundTrip(t *testing.T) {
	k := api.NewRegistry(Kinds()...).ByKind(schema.GroupKind{Group: "autoscaling", Kind: "HorizontalPodAutoscaler"})
	v1 := k.Version("v1")
	f := filler(2).Funcs(fillMetrics, fillStatus)
	for range 200 {
		in := random(k, f).(*autoscalingv2.HorizontalPodAutoscaler)
		in.TypeMeta = metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: k.Kind}
		k.Default(in)
		in.Spec.Metrics = cpuLast(in.Spec.Metrics)
		before := in.DeepCopy()
		old, err := v1.FromHub(in)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(in, before) {
			t.Fatal("the conversion changed its argument")
		}
		out, err := v1.ToHub(old)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(in, out) {
			t.Fatalf("lost on the way through v1:\n in %s\nout %s\nv1 %+v", dump(in), dump(out), old)
		}
		again, err := v1.FromHub(out)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(old.(*autoscalingv1.HorizontalPodAutoscaler), again) {
			t.Fatalf("v1 differs the second time:\n%+v\n%+v", old, again)
		}
	}
}

func dump(v any) string { return fmt.Sprintf("%+v", v) }

// cpuLast puts the CPU utilization target, of which there is one at most, where v1 leaves it: at the end.
func cpuLast(metrics []autoscalingv2.MetricSpec) []autoscalingv2.MetricSpec {
	var rest, cpu []autoscalingv2.MetricSpec
	for _, m := range metrics {
		if m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource.Name == corev1.ResourceCPU && m.Resource.Target.AverageUtilization != nil {
			cpu = []autoscalingv2.MetricSpec{m}
		} else {
			rest = append(rest, m)
		}
	}
	return append(rest, cpu...)
}

// fillMetrics makes metrics of the form that validation lets in.
func fillMetrics(m *autoscalingv2.MetricSpec, c randfill.Continue) {
	value := func(t *autoscalingv2.MetricTarget) {
		c.Fill(&t.Value)
		c.Fill(&t.AverageValue)
		t.AverageUtilization = nil
		if t.AverageValue != nil {
			t.Type, t.Value = autoscalingv2.AverageValueMetricType, nil
			return
		}
		if t.Value == nil {
			t.Value = quantity(c)
		}
		t.Type = autoscalingv2.ValueMetricType
	}
	utilization := func(t *autoscalingv2.MetricTarget) {
		if c.Bool() {
			n := c.Int31()
			*t = autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &n}
		} else {
			*t = autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: quantity(c)}
		}
	}
	switch c.Intn(5) {
	case 0:
		m.Type, m.Object = autoscalingv2.ObjectMetricSourceType, &autoscalingv2.ObjectMetricSource{}
		c.Fill(&m.Object.DescribedObject)
		c.Fill(&m.Object.Metric)
		value(&m.Object.Target)
	case 1:
		m.Type, m.Pods = autoscalingv2.PodsMetricSourceType, &autoscalingv2.PodsMetricSource{}
		c.Fill(&m.Pods.Metric)
		m.Pods.Target = autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: quantity(c)}
	case 2:
		m.Type, m.Resource = autoscalingv2.ResourceMetricSourceType, &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU}
		utilization(&m.Resource.Target)
	case 3:
		m.Type, m.ContainerResource = autoscalingv2.ContainerResourceMetricSourceType, &autoscalingv2.ContainerResourceMetricSource{Name: "memory", Container: "c"}
		utilization(&m.ContainerResource.Target)
	default:
		m.Type, m.External = autoscalingv2.ExternalMetricSourceType, &autoscalingv2.ExternalMetricSource{}
		c.Fill(&m.External.Metric)
		value(&m.External.Target)
	}
}

func fillStatus(m *autoscalingv2.MetricStatus, c randfill.Continue) {
	switch c.Intn(3) {
	case 0:
		m.Type, m.Pods = autoscalingv2.PodsMetricSourceType, &autoscalingv2.PodsMetricStatus{}
		c.Fill(&m.Pods.Metric)
		m.Pods.Current.AverageValue = quantity(c)
	case 1:
		n := c.Int31()
		m.Type, m.Resource = autoscalingv2.ResourceMetricSourceType, &autoscalingv2.ResourceMetricStatus{Name: corev1.ResourceCPU}
		m.Resource.Current = autoscalingv2.MetricValueStatus{AverageUtilization: &n, AverageValue: quantity(c)}
	default:
		m.Type, m.External = autoscalingv2.ExternalMetricSourceType, &autoscalingv2.ExternalMetricStatus{}
		c.Fill(&m.External.Metric)
		m.External.Current.Value = quantity(c)
	}
}

// TestEventRoundTrip converts events to the shape of events.k8s.io and back.
func TestEventRoundTrip(t *testing.T) {
	k := api.NewRegistry(Kinds()...).ByName("events.events.k8s.io")
	v1 := k.Version("v1")
	f := filler(3)
	for range 200 {
		in := random(k, f).(*corev1.Event)
		in.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: k.Kind}
		shown, err := v1.FromHub(in)
		if err != nil {
			t.Fatal(err)
		}
		if e := shown.(*eventsv1.Event); e.Note != in.Message || e.Regarding != in.InvolvedObject || e.DeprecatedCount != in.Count {
			t.Fatalf("wrong fields: %+v of %+v", e, in)
		}
		out, err := v1.ToHub(shown)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(in, out) {
			t.Fatalf("lost on the way:\n%+v\n%+v", in, out)
		}
	}
}

func quantity(c randfill.Continue) *resource.Quantity {
	return resource.NewQuantity(1+c.Int63n(1000), resource.DecimalSI)
}
