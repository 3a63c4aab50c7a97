// Command openapi writes the OpenAPI documents of the built-in kinds: one of version 2 for all, one of
// version 3 for each group and version, compressed as they are served. See generate.sh.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"coracle.dev/coracle/api/builtin"
	"coracle.dev/coracle/tools/openapi/definitions"
)

func main() {
	out := flag.String("out", "", "directory to write to")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	types := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(types))
	utilruntime.Must(apiextensionsv1.AddToScheme(types))
	utilruntime.Must(apiregistrationv1.AddToScheme(types))
	utilruntime.Must(gatewayv1.Install(types))
	utilruntime.Must(gatewayv1beta1.Install(types))
	utilruntime.Must(policyv1alpha2.AddToScheme(types))
	groups := containers(builtin.Kinds(), types)
	nameOf := definitionNames(types)
	info := &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "v1.37.2"}}

	if err := os.RemoveAll(out); err != nil {
		return err
	}
	names := make([]string, 0, len(groups))
	for name := range groups {
		names = append(names, name)
	}
	sort.Strings(names)
	var all []common.RouteContainer
	for _, name := range names {
		all = append(all, groups[name])
		doc, err := builder3.BuildOpenAPISpecFromRoutes([]common.RouteContainer{groups[name]}, &common.OpenAPIV3Config{
			Info: info, GetDefinitions: definitions.GetOpenAPIDefinitions, GetDefinitionName: nameOf,
			GetOperationIDAndTagsFromRoute: operationID,
			DefaultSecurity:                []map[string][]string{{"BearerToken": {}}},
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		data, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		if err := writeCompressed(filepath.Join(out, "v3", name+".json.gz"), data); err != nil {
			return err
		}
	}
	doc, err := builder.BuildOpenAPISpecFromRoutes(all, &common.Config{
		ProtocolList: []string{"https"}, Info: info, GetDefinitions: definitions.GetOpenAPIDefinitions,
		GetDefinitionName: nameOf, GetOperationIDAndTagsFromRoute: operationID,
	})
	if err != nil {
		return err
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	if err := writeCompressed(filepath.Join(out, "v2.json.gz"), data); err != nil {
		return err
	}
	parsed, err := openapi_v2.ParseDocument(data)
	if err != nil {
		return err
	}
	binary, err := proto.Marshal(parsed)
	if err != nil {
		return err
	}
	return writeCompressed(filepath.Join(out, "v2.pb.gz"), binary)
}

// definitionNames names the definitions of types. Those that are not of Kubernetes' own packages have the paths of their packages
// as names, which get the form that Kubernetes' have.
func definitionNames(types *runtime.Scheme) func(string) (string, spec.Extensions) {
	namer := openapi.NewDefinitionNamer(types)
	foreign := map[string][]any{}
	for gvk, t := range types.AllKnownTypes() {
		name := t.PkgPath() + "." + t.Name()
		foreign[name] = append(foreign[name], map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind})
	}
	return func(name string) (string, spec.Extensions) {
		if !strings.HasPrefix(name, "sigs.k8s.io/") {
			return namer.GetDefinitionName(name)
		}
		friendly := "io.k8s.sigs." + strings.ReplaceAll(strings.TrimPrefix(name, "sigs.k8s.io/"), "/", ".")
		if gvks := foreign[name]; gvks != nil {
			return friendly, spec.Extensions{"x-kubernetes-group-version-kind": gvks}
		}
		return friendly, nil
	}
}

func writeCompressed(path string, data []byte) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(data); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

func operationID(r common.Route) (string, []string, error) {
	var tags []string
	if tag, ok := r.Metadata()["tag"].(string); ok {
		tags = []string{tag}
	}
	return r.OperationName(), tags, nil
}

// groupPath is where a group and version is served, "apis/apps/v1".
func groupPath(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.Group + "/" + gv.Version
}

// camel is a group and version as operation IDs have it, "AppsV1", "RbacAuthorizationV1".
func camel(gv schema.GroupVersion) string {
	group := strings.TrimSuffix(gv.Group, ".k8s.io")
	if group == "" {
		group = "core"
	}
	var s strings.Builder
	for _, part := range append(strings.Split(group, "."), gv.Version) {
		s.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return s.String()
}
