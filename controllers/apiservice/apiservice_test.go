package apiservice_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"coracle.dev/coracle/client"
	"coracle.dev/coracle/controllers/apiservice"
	"coracle.dev/coracle/reconcile/reconciletest"
)

const resource = "apiservices.apiregistration.k8s.io"

// server stands for the extension server and the proxy.
type server struct {
	mu            sync.Mutex
	err           error
	probes, looks int
	routes        map[string]bool // name to whether it names a server
}

func (s *server) config() apiservice.Config {
	s.routes = map[string]bool{}
	return apiservice.Config{
		BuiltIn: []apiservice.Local{{Group: "apps", Version: "v1", GroupPriority: 17800, VersionPriority: 15}, {Group: "", Version: "v1", GroupPriority: 18000, VersionPriority: 1}},
		Route: func(a *apiregistrationv1.APIService) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.routes[a.Name] = a.Spec.Service != nil
		},
		Forget: func(name string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.routes, name)
		},
		Probe: func(context.Context, *apiregistrationv1.APIService) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.probes++
			return s.err
		},
		Look: func(context.Context, *apiregistrationv1.APIService) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.looks++
			return s.err
		},
		Fresh: func(string) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.looks > 0 && s.err == nil
		},
	}
}

func (s *server) answer(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *server) counts() (probes, looks int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.probes, s.looks
}

func remote() *apiregistrationv1.APIService {
	port := int32(443)
	return &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.ext.example.com"}, Spec: apiregistrationv1.APIServiceSpec{
		Group: "ext.example.com", Version: "v1", GroupPriorityMinimum: 1000, VersionPriority: 10,
		Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "api", Port: &port}}}
}

func TestAvailability(t *testing.T) {
	s := &server{}
	cfg := s.config()
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		expect := func(step, want string) {
			t.Helper()
			h.Settle()
			a := reconciletest.Get(h, apiservice.APIServices, "", "v1.ext.example.com")
			if len(a.Status.Conditions) != 1 {
				t.Fatalf("%s: conditions %v", step, a.Status.Conditions)
			}
			c := a.Status.Conditions[0]
			if got := fmt.Sprintf("%s %s %s: %s", c.Type, c.Status, c.Reason, c.Message); got != want {
				t.Errorf("%s: %s, want %s", step, got, want)
			}
		}
		h.Create(resource, remote())
		expect("no service", `Available False ServiceNotFound: service/api in "default" is not present`)
		h.Create("services", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "api"},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}})
		expect("other port", `Available False ServicePortError: service/api in "default" is not listening on port 443`)
		reconciletest.Change(h, client.Services, "default", "api", "", func(s *corev1.Service) { s.Spec.Ports[0].Port = 443 })
		expect("no slices", `Available False EndpointsNotFound: cannot find endpointslices for service/api in "default"`)
		name, port, ready := "web", int32(6443), false
		h.Create(client.EndpointSlices.Name, &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "api-1", Labels: map[string]string{discoveryv1.LabelServiceName: "api"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}})
		expect("not ready", `Available False MissingEndpoints: endpointslices for service/api in "default" have no addresses with port name "web"`)
		if probes, _ := s.counts(); probes != 0 {
			t.Errorf("probed %d times with nobody to probe", probes)
		}
		s.answer(errors.New("failing or missing response"))
		reconciletest.Change(h, client.EndpointSlices, "default", "api-1", "", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = nil })
		h.Advance(10 * time.Millisecond)
		expect("broken", `Available False FailedDiscoveryCheck: failing or missing response`)
		before, looks := s.counts()
		h.Advance(10 * time.Minute)
		if probes, _ := s.counts(); probes-before < 15 || probes-before > 30 {
			t.Errorf("%d probes in ten minutes, want about one in 30 s", probes-before)
		}
		if looks != 0 {
			t.Errorf("a server that is not there was asked for its kinds")
		}
		s.answer(nil)
		h.Advance(31 * time.Second)
		expect("there", `Available True Passed: all checks passed`)
		_, looks = s.counts()
		h.Advance(10 * time.Minute)
		if _, again := s.counts(); looks == 0 || again-looks < 8 || again-looks > 12 {
			t.Errorf("asked for its kinds %d times and then %d in ten minutes", looks, again-looks)
		}
		revision := reconciletest.Get(h, apiservice.APIServices, "", "v1.ext.example.com").ResourceVersion
		h.Advance(10 * time.Minute)
		if now := reconciletest.Get(h, apiservice.APIServices, "", "v1.ext.example.com").ResourceVersion; now != revision {
			t.Error("an APIService that stays as it is was written")
		}
		h.Delete("services", "default", "api", "")
		expect("gone", `Available False ServiceNotFound: service/api in "default" is not present`)
		s.mu.Lock()
		if !s.routes["v1.ext.example.com"] {
			t.Errorf("routes: %v", s.routes)
		}
		s.mu.Unlock()
		h.Delete(resource, "", "v1.ext.example.com", "")
		h.Settle()
		s.mu.Lock()
		if _, ok := s.routes["v1.ext.example.com"]; ok {
			t.Error("the proxy was not told of the end")
		}
		s.mu.Unlock()
	}, append(apiservice.Loops(cfg), apiservice.RemoteLoops(cfg)...)...)
}

func definition(version string, served bool) *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.ClusterScoped, Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Kind: "Widget"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: version, Served: served, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}}}}}
}

func TestRegistration(t *testing.T) {
	const definitions = "customresourcedefinitions.apiextensions.k8s.io"
	s := &server{}
	reconciletest.Run(t, func(h *reconciletest.Harness) {
		managed := func(name string) string {
			h.Settle()
			a, ok := apiservice.APIServices.Get(h.Snapshot(), "", name)
			if !ok {
				return "absent"
			}
			return a.Labels["kube-aggregator.kubernetes.io/automanaged"]
		}
		if got := managed("v1.apps") + " " + managed("v1."); got != "onstart onstart" {
			t.Errorf("built-in: %s", got)
		}
		h.Delete(resource, "", "v1.apps", "")
		if got := managed("v1.apps"); got != "absent" {
			t.Errorf("a built-in one that was deleted: %s, want it to come back at the next start only", got)
		}
		h.Create(definitions, definition("v1", true))
		if got := managed("v1.example.com"); got != "true" {
			t.Errorf("of a definition: %s", got)
		}
		reconciletest.Change(h, apiservice.APIServices, "", "v1.example.com", "", func(a *apiregistrationv1.APIService) { a.Spec.VersionPriority = 7 })
		h.Settle()
		if p := reconciletest.Get(h, apiservice.APIServices, "", "v1.example.com").Spec.VersionPriority; p != 100 {
			t.Errorf("not mended: %d", p)
		}
		h.Delete(resource, "", "v1.example.com", "")
		if got := managed("v1.example.com"); got != "true" {
			t.Errorf("deleted: %s", got)
		}
		h.Delete(definitions, "", "widgets.example.com", "")
		if got := managed("v1.example.com"); got != "absent" {
			t.Errorf("after the definition: %s", got)
		}
		own := remote()
		own.Name, own.Spec.Group = "v1.example.com", "example.com"
		h.Create(resource, own)
		h.Create(definitions, definition("v1", true))
		if got := managed("v1.example.com"); got != "" {
			t.Errorf("the user's own: %s", got)
		}
		h.Delete(definitions, "", "widgets.example.com", "")
		if got := managed("v1.example.com"); got != "" {
			t.Errorf("the user's own after the definition: %s", got)
		}
	}, apiservice.Loops(s.config())...)
}
