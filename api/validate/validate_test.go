package validate

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// FuzzFastPaths holds that the hand-written predicates agree with apimachinery's regular
// expressions on every string.
func FuzzFastPaths(f *testing.F) {
	for _, s := range []string{
		"", "a", "-", ".", "a.b", "a..b", "-a", "a-", "A", "a_b", "a/b", "/a", "a/", "a/b/c", "x.y/Z_z.9",
		"..", "..a", "a--b", "0", "09", "http", "a.b.c.", "é", "a\n", strings.Repeat("a", 63), strings.Repeat("a", 64),
		strings.Repeat("a.", 126) + "a", strings.Repeat("a.", 127) + "a", strings.Repeat("a", 254),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []struct {
			name string
			fast bool
			slow []string
		}{
			{"label", isLabel(s), content.IsDNS1123Label(s)},
			{"subdomain", isSubdomain(s), content.IsDNS1123Subdomain(s)},
			{"port name", isPortName(s), content.IsValidPortName(s)},
			{"qualified name", isQualifiedName(s), content.IsQualifiedName(s)},
			{"label value", len(LabelValue(s)) == 0, content.IsValidLabelValue(s)},
		} {
			if c.fast != (len(c.slow) == 0) {
				t.Errorf("%s %q: fast path says %t, apimachinery %q", c.name, s, c.fast, c.slow)
			}
		}
		// The fast path of config keys leaves dot-files to the slow one.
		if isConfigKey(s) && len(content.IsConfigMapKey(s)) > 0 {
			t.Errorf("config key %q: accepted, apimachinery says %q", s, content.IsConfigMapKey(s))
		}
	})
}

func TestWords(t *testing.T) {
	p := field.NewPath("f")
	q := resource.MustParse
	type E = field.ErrorList
	tests := []struct {
		name string
		got  E
		want string
	}{
		{"label", DNSLabelField("A", p), `f: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`},
		{"negative", NonNegative(int32(-1), p), `f: Invalid value: -1: must be greater than or equal to 0`},
		{"positive", Positive(0, p), `f: Invalid value: 0: must be greater than zero`},
		{"range", InRange(9, 1, 5, p), `f: Invalid value: 9: must be between 1 and 5, inclusive`},
		{"port", Port(70000, p), `f: Invalid value: 70000: must be between 1 and 65535, inclusive`},
		{"port name", PortNumberOrName(intstr.FromString("80"), p), `f: Invalid value: "80": must contain at least one letter (a-z)`},
		{"enum", OneOf(corev1.Protocol("X"), p, corev1.ProtocolSCTP, corev1.ProtocolTCP), `f: Unsupported value: "X": supported values: "SCTP", "TCP"`},
		{"required", RequiredOneOf(corev1.Protocol(""), p, corev1.ProtocolTCP), `f: Required value`},
		{"immutable", Immutable("b", "a", p), `f: Invalid value: "b": field is immutable`},
		{"ip", IP("10.0.0.256", p), `f: Invalid value: "10.0.0.256": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`},
		{"ip zeros", IP("010.0.0.1", p), `f: Invalid value: "010.0.0.1": must not have leading 0s`},
		{"ip zeros, old", IP("010.0.0.1", p, "010.0.0.1"), ``},
		{"quantity", NonNegativeQuantity(q("-1"), p), `f: Invalid value: "-1": must be greater than or equal to 0`},
		{"quantity zero", PositiveQuantity(q("0"), p), `f: Invalid value: "0": must be greater than zero`},
		{"half a pod", ResourceQuantity("pods", q("500m"), p), `f: Invalid value: "500m": must be an integer`},
		{"half a gpu", ResourceQuantity("example.com/gpu", q("500m"), p), `f: Invalid value: "500m": must be an integer`},
		{"half a cpu", ResourceQuantity("cpu", q("500m"), p), ``},
		{"resource", ResourceName("gpu", p), `f: Invalid value: "gpu": must be a standard resource type or fully qualified`},
		{"container resource", ContainerResourceName("pods", p), `f: Invalid value: "pods": must be a standard resource for containers`},
		{"extended resource", ContainerResourceName("requests.example.com/gpu", p), `f: Invalid value: "requests.example.com/gpu": doesn't follow extended resource name standard`},
		{"selector", LabelSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "In"}}}, p),
			"f.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"},
		{"labels", Labels(map[string]string{"a": "b c"}, p), `f: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`},
		{"annotations", Annotations(map[string]string{"a": strings.Repeat("x", 256<<10)}, p), `f: Too long: may not be more than 262144 bytes`},
		{"metadata", Meta(&metav1.ObjectMeta{Namespace: "n"}, true, nil, p), `f.name: Required value: name or generateName is required`},
		{"generate name", Meta(&metav1.ObjectMeta{Name: "a-1", GenerateName: "a-"}, false, Label, p), ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var lines []string
			for _, e := range tt.got {
				lines = append(lines, e.Error())
			}
			if got := strings.Join(lines, "\n"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
