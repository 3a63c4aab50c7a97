package core_test

import (
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"

	"coracle.dev/coracle/api"
	"coracle.dev/coracle/api/core"
)

// words are what random strings are drawn from: what fields look for, and what they refuse.
var words = strings.Fields(`a b c web Bad_Name a/b ../a /a /a/.. 10.0.0.1 fd00::1 010.0.0.1 bad 10.0.0.0/8 10.0.0.1/8 127.0.0.1
	Always Never OnFailure IfNotPresent TCP UDP SCTP ClusterFirst None Default Exists Equal In NotIn Gt Lt NoSchedule NoExecute
	ClusterIP NodePort LoadBalancer ExternalName Cluster Local ClientIP IPv4 IPv6 SingleStack PreferDualStack RequireDualStack
	ReadWriteOnce ReadWriteOncePod Block Filesystem Retain Delete Recycle Bidirectional Enabled Localhost Unconfined RuntimeDefault
	Pending Running Succeeded Failed Bound Active Terminating kubernetes kubernetes.io/tls kubernetes.io/ssh-auth Opaque
	Container Pod PersistentVolumeClaim BestEffort PriorityClass requests.cpu limits.memory metadata.name metadata.labels['a']
	File Unmasked windows linux HTTP HTTPS node-role.kubernetes.io/worker nginx nginx:latest nginx@sha256:00 *.example.com
	True False Unknown Ready PodScheduled Initialized Completed NodeLost v1 - . .. é CAP_SYS_ADMIN SYS_ADMIN kernel.shm_rmid_forced`)

var resources = []corev1.ResourceName{"cpu", "memory", "storage", "ephemeral-storage", "hugepages-2Mi", "hugepages-odd", "pods",
	"example.com/gpu", "requests.cpu", "limits.memory", "count/pods", "Bad_", "", "gold.storageclass.storage.k8s.io/requests.storage"}

var amounts = []string{"0", "1", "-1", "100m", "1.5", "1Gi", "2Mi", "3Mi", "9223372036854775807", "1e30", "0.0001"}

// filler fills objects with what might be in them.
func filler(seed int64) *randfill.Filler {
	return randfill.NewWithSeed(seed).NilChance(0.5).NumElements(0, 3).MaxDepth(18).Funcs(
		func(s *string, c randfill.Continue) { *s = word(c) },
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse(amounts[c.Intn(len(amounts))])
		},
		func(l *corev1.ResourceList, c randfill.Continue) {
			for range c.Intn(4) {
				if *l == nil {
					*l = corev1.ResourceList{}
				}
				(*l)[resources[c.Intn(len(resources))]] = resource.MustParse(amounts[c.Intn(len(amounts))])
			}
		},
		func(t *metav1.Time, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.Unix(int64(c.Intn(2e9)), 0)
			}
		},
		func(t *metav1.MicroTime, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.NewMicroTime(time.Unix(int64(c.Intn(2e9)), 0))
			}
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			if *v = intstr.FromInt32(int32(c.Intn(70000) - 10)); c.Bool() {
				*v = intstr.FromString(word(c))
			}
		},
		func(n *int32, c randfill.Continue) { *n = int32(number(c)) },
		func(n *int64, c randfill.Continue) { *n = number(c) },
		func(m *metav1.ManagedFieldsEntry, _ randfill.Continue) {},
		func(o *metav1.ObjectMeta, c randfill.Continue) {
			c.FillNoCustom(o)
			o.Name, o.Namespace = "name", "default"
		},
	)
}

func word(c randfill.Continue) string {
	if c.Intn(8) == 0 {
		return strings.Repeat("x", c.Intn(70))
	}
	return words[c.Intn(len(words))]
}

func number(c randfill.Continue) int64 {
	return []int64{0, 0, 1, 1, 2, 5, 30, 80, 80, 420, 512, 65535, 65536, -1, 1 << 31, 1 << 40}[c.Intn(16)]
}

// TestRandomObjects holds, of objects of every kind with anything in them, that defaulting twice is
// defaulting once, that no rule panics or changes what it only looks at, and that an object
// is not new beside itself.
func TestRandomObjects(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 40
	}
	for _, k := range api.NewRegistry(core.Kinds()...).All() {
		if k.Virtual {
			continue
		}
		t.Run(k.Kind, func(t *testing.T) {
			for seed := range int64(rounds) {
				if checkRandom(t, k, newSource(seed)); t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// source makes random objects.
type source struct {
	*randfill.Filler
	*rand.Rand
}

func newSource(seed int64) source { return source{filler(seed), rand.New(rand.NewSource(seed))} }

func (s source) object(k *api.Kind) api.Object {
	obj := k.Hub().New().(api.Object)
	s.fill(obj)
	return obj
}

// fill fills what p points to. Strings of named types are mostly given words as well: the filler would
// write noise.
func (s source) fill(p any) {
	s.Fill(p)
	s.name(reflect.ValueOf(p).Elem())
}

func (s source) name(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			s.name(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				s.name(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			s.name(v.Index(i))
		}
	case reflect.String:
		if v.Type().PkgPath() != "" && s.Intn(5) > 0 {
			v.SetString(words[s.Intn(len(words))])
		}
	}
}

func clone(o api.Object) api.Object { return o.DeepCopyObject().(api.Object) }

func checkRandom(t *testing.T, k *api.Kind, f source) {
	obj := f.object(k)
	call(k.Default, obj)
	again := clone(obj)
	call(k.Default, again)
	same(t, k.Kind+": Default of Default", again, obj)

	created := clone(obj)
	call(k.PrepareCreate, created)
	look(t, k, created, nil)

	old := f.object(k)
	call(k.Default, old)
	views := []api.Strategy{k.Strategy}
	for _, s := range k.Subresources {
		if s.Strategy != nil {
			views = append(views, *s.Strategy)
		}
	}
	for _, s := range views {
		change(t, k, s, clone(obj), old)
		change(t, k, s, mutated(k, f, old), old)
		still := clone(old)
		change(t, k, s, still, old)
		if k.Desired != nil && k.Desired(still, old) {
			t.Errorf("%s: an object that nobody changed has a new generation", k.Kind)
		}
	}
	if k.Grace != nil {
		seconds := int64(-3)
		if k.Grace(obj, nil) < 0 || k.Grace(obj, &seconds) < 0 {
			t.Errorf("%s: a negative grace period", k.Kind)
		}
	}
}

// mutated is old with one of its fields, metadata, spec, status or data, filled anew.
func mutated(k *api.Kind, f source, old api.Object) api.Object {
	obj := clone(old)
	v := reflect.ValueOf(obj).Elem()
	f.fill(v.Field(1 + f.Intn(v.NumField()-1)).Addr().Interface())
	call(k.Default, obj)
	return obj
}

// change puts an update through a view.
func change(t *testing.T, k *api.Kind, s api.Strategy, obj, old api.Object) {
	before := clone(old)
	if s.PrepareUpdate != nil {
		s.PrepareUpdate(obj, old)
	}
	same(t, k.Kind+": the old object after preparation", old, before)
	prepared := clone(obj)
	if s.ValidateUpdate != nil {
		s.ValidateUpdate(obj, old)
	}
	if s.Warnings != nil {
		s.Warnings(obj, old)
	}
	same(t, k.Kind+": the object after validation", obj, prepared)
	same(t, k.Kind+": the old object after validation", old, before)
	look(t, k, obj, old)
}

// look calls everything that only reads an object.
func look(t *testing.T, k *api.Kind, obj, old api.Object) {
	before := clone(obj)
	if k.Validate != nil {
		k.Validate(obj)
	}
	if k.Warnings != nil {
		k.Warnings(obj, old)
	}
	now := time.Unix(1.9e9, 0)
	for _, c := range k.Columns {
		switch v := c.Cell(obj, now).(type) {
		case string, int64, float64, bool:
		default:
			t.Errorf("%s: column %s gives a %T", k.Kind, c.Name, v)
		}
	}
	for _, f := range k.Fields {
		f(obj)
	}
	for _, f := range k.Indexes {
		f(obj)
	}
	same(t, k.Kind+": an object that was looked at", obj, before)
}

func same(t *testing.T, what string, got, want api.Object) {
	if !equality.Semantic.DeepEqual(got, want) {
		t.Errorf("%s differs:\n%s", what, diff(flat(t, want), flat(t, got)))
	}
}

// FuzzKinds is TestRandomObjects with the fuzzer's bytes in place of random numbers.
func FuzzKinds(f *testing.F) {
	kinds := api.NewRegistry(core.Kinds()...).All()
	for i := range kinds {
		f.Add(uint8(i), []byte("seed of many bytes that lead somewhere \x00\xff\x80\x01"))
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		k := kinds[int(which)%len(kinds)]
		if k.Virtual || len(data) < 8 {
			return
		}
		seed := int64(0)
		for _, b := range data {
			seed = seed*131 + int64(b)
		}
		checkRandom(t, k, newSource(seed))
	})
}
