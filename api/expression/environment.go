package expression

import (
	"runtime"
	"sync"
	"weak"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types/traits"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/mutation"
)

// Base gives the environment that all expressions of Kubernetes start from, without variables. It takes some
// milliseconds the first time and stays.
func Base(stored bool) *cel.Env {
	set := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
	if stored {
		return set.StoredExpressionsEnv()
	}
	return set.NewExpressionsEnv()
}

// pool keeps values as long as somebody uses them.
type pool[K comparable, V any] struct {
	mu     sync.Mutex // guards values
	values map[K]weak.Pointer[V]
}

// get returns the value of a key, made if there is none. Two callers may make it at once; one of the two is kept.
func (p *pool[K, V]) get(key K, make func() (*V, error)) (*V, error) {
	p.mu.Lock()
	v := p.values[key].Value()
	p.mu.Unlock()
	if v != nil {
		return v, nil
	}
	fresh, err := make()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.values[key].Value(); v != nil {
		return v, nil
	}
	if p.values == nil {
		p.values = map[K]weak.Pointer[V]{}
	}
	p.values[key] = weak.Make(fresh)
	runtime.AddCleanup(fresh, p.drop, key)
	return fresh, nil
}

// drop forgets a key whose value is gone.
func (p *pool[K, V]) drop(key K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.values[key]; ok && w.Value() == nil {
		delete(p.values, key)
	}
}

type interned struct {
	text string
	want Result
	opts Options
}

var (
	environments pool[Options, cel.Env]
	expressions  pool[interned, Expression]
)

// Interned is how many expressions are alive that were compiled without variables.
func Interned() int {
	expressions.mu.Lock()
	defer expressions.mu.Unlock()
	n := 0
	for _, w := range expressions.values {
		if w.Value() != nil {
			n++
		}
	}
	return n
}

func intern(text string, want Result, o Options) *Expression {
	e, _ := expressions.get(interned{text, want, o}, func() (*Expression, error) {
		env, err := environmentOf(o)
		if err != nil {
			return internal(text, "unexpected error loading CEL environment: %v", err), nil
		}
		return compile(env, text, want), nil
	})
	return e
}

func environmentOf(o Options) (*cel.Env, error) {
	return environments.get(o, func() (*cel.Env, error) {
		request, namespace := requestType(), namespaceType()
		options := []cel.EnvOption{
			cel.Variable(Object, cel.DynType),
			cel.Variable(OldObject, cel.DynType),
			cel.Variable(NamespaceObject, namespace.CelType()),
			cel.Variable(Request, request.CelType()),
		}
		if o.Params {
			options = append(options, cel.Variable(Params, cel.DynType))
		}
		if o.Authorizer {
			options = append(options, cel.Variable(Authorizer, library.AuthorizerType), cel.Variable(RequestResource, library.ResourceCheckType))
		}
		env, err := extend(Base(o.Stored), []*apicel.DeclType{namespace, request}, options...)
		if err != nil || !o.Patch {
			return env, err
		}
		return env.Extend(common.ResolverEnvOption(&mutation.DynamicTypeResolver{}), library.JSONPatch())
	})
}

// extend adds variables and their types to an environment.
func extend(base *cel.Env, types []*apicel.DeclType, options ...cel.EnvOption) (*cel.Env, error) {
	provider := apicel.NewDeclTypeProvider(types...)
	provider.SetRecognizeKeywordAsFieldName(true)
	more, err := provider.EnvOptions(base.CELTypeProvider())
	if err != nil {
		return nil, err
	}
	return base.Extend(append(options, more...)...)
}

// requestType is what expressions know of request: the fields of an AdmissionRequest without uid, object and oldObject.
func requestType() *apicel.DeclType {
	kind := objectType("kubernetes.GroupVersionKind", fields{"group": apicel.StringType, "version": apicel.StringType, "kind": apicel.StringType})
	resource := objectType("kubernetes.GroupVersionResource", fields{"group": apicel.StringType, "version": apicel.StringType, "resource": apicel.StringType})
	texts := apicel.NewListType(apicel.StringType, -1)
	user := objectType("kubernetes.UserInfo", fields{
		"username": apicel.StringType, "uid": apicel.StringType, "groups": texts,
		"extra": apicel.NewMapType(apicel.StringType, texts, -1),
	})
	return objectType("kubernetes.AdmissionRequest", fields{
		"kind": kind, "resource": resource, "subResource": apicel.StringType,
		"requestKind": kind, "requestResource": resource, "requestSubResource": apicel.StringType,
		"name": apicel.StringType, "namespace": apicel.StringType, "operation": apicel.StringType,
		"userInfo": user, "dryRun": apicel.BoolType, "options": apicel.DynType,
	})
}

// namespaceType is what expressions know of namespaceObject. UID is written so by upstream.
func namespaceType() *apicel.DeclType {
	texts := apicel.NewListType(apicel.StringType, -1)
	words := apicel.NewMapType(apicel.StringType, apicel.StringType, -1)
	condition := objectType("kubernetes.NamespaceCondition", fields{
		"status": apicel.StringType, "type": apicel.StringType, "lastTransitionTime": apicel.TimestampType,
		"message": apicel.StringType, "reason": apicel.StringType,
	})
	return objectType("kubernetes.Namespace", fields{
		"metadata": objectType("kubernetes.NamespaceMetadata", fields{
			"name": apicel.StringType, "generateName": apicel.StringType, "namespace": apicel.StringType,
			"labels": words, "annotations": words, "UID": apicel.StringType,
			"creationTimestamp": apicel.TimestampType, "deletionTimestamp": apicel.TimestampType, "deletionGracePeriodSeconds": apicel.IntType,
			"generation": apicel.IntType, "resourceVersion": apicel.StringType, "finalizers": texts,
		}),
		"spec":   objectType("kubernetes.NamespaceSpec", fields{"finalizers": texts}),
		"status": objectType("kubernetes.NamespaceStatus", fields{"conditions": apicel.NewListType(condition, -1), "phase": apicel.StringType}),
	})
}

type fields map[string]*apicel.DeclType

func objectType(name string, f fields) *apicel.DeclType {
	declared := make(map[string]*apicel.DeclField, len(f))
	for field, t := range f {
		declared[field] = apicel.NewDeclField(field, t, true, nil, nil)
	}
	return apicel.NewObjectType(name, declared)
}

var simple = map[*cel.Type]*apicel.DeclType{
	cel.AnyType: apicel.AnyType, cel.BoolType: apicel.BoolType, cel.BytesType: apicel.BytesType, cel.DoubleType: apicel.DoubleType,
	cel.DurationType: apicel.DurationType, cel.IntType: apicel.IntType, cel.NullType: apicel.NullType, cel.StringType: apicel.StringType,
	cel.TimestampType: apicel.TimestampType, cel.UintType: apicel.UintType,
}

// declared is the type that a variable is declared with whose expression has a type of CEL; any type where that is not known.
func declared(t *cel.Type) *apicel.DeclType {
	if t == nil {
		return apicel.DynType
	}
	if d := simple[t]; d != nil {
		return d
	}
	if t.HasTrait(traits.ContainerType) && t.HasTrait(traits.IndexerType) {
		switch p := t.Parameters(); len(p) {
		case 1:
			return apicel.NewListType(declared(p[0]), -1)
		case 2:
			return apicel.NewMapType(declared(p[0]), declared(p[1]), -1)
		}
	}
	return apicel.DynType
}
