package apiserver

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coracle.dev/coracle/api/builtin"
)

// mutate makes a MutatingAdmissionPolicy on one resource.
func mutate(t *testing.T, e *env, group, resource string, m admissionv1.Mutation) {
	t.Helper()
	policy := &admissionv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "m"},
		Spec: admissionv1.MutatingAdmissionPolicySpec{
			ReinvocationPolicy: admissionv1.NeverReinvocationPolicy,
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{admissionv1.OperationAll},
				Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: []string{resource}},
			}}}},
			Mutations: []admissionv1.Mutation{m},
		},
	}
	binding := &admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "m"},
		Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: "m"}}
	if _, err := e.typed.AdmissionregistrationV1().MutatingAdmissionPolicies().Create(ctx(t), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.typed.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Create(ctx(t), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func applied(expression string) admissionv1.Mutation {
	return admissionv1.Mutation{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: expression}}
}

func patched(expression string) admissionv1.Mutation {
	return admissionv1.Mutation{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: expression}}
}

// What a policy makes of a Scale is what the workload gets.
func TestPolicyOnScale(t *testing.T) {
	for name, m := range map[string]admissionv1.Mutation{
		"apply": applied("Object{spec: Object.spec{replicas: object.spec.replicas + 1}}"),
		"patch": patched("[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]"),
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, builtin.Kinds())
			labels := map[string]string{"a": "b"}
			d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
			}}
			all := e.typed.AppsV1().Deployments("default")
			if _, err := all.Create(ctx(t), d, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			mutate(t, e, "apps", "deployments/scale", m)
			out, err := all.UpdateScale(ctx(t), "web", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
				Spec: autoscalingv1.ScaleSpec{Replicas: 4}}, metav1.UpdateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			d, err = all.Get(ctx(t), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if out.Spec.Replicas != 5 || *d.Spec.Replicas != 5 {
				t.Errorf("%d replicas in the answer, %d in the object", out.Spec.Replicas, *d.Spec.Replicas)
			}
		})
	}
}

// The namespace of a Namespace is itself, on create too.
func TestPolicyOnNamespace(t *testing.T) {
	e := start(t, builtin.Kinds())
	mutate(t, e, "", "namespaces", applied("Object{metadata: Object.metadata{labels: {'seen': request.namespace}}}"))
	ns, err := e.typed.CoreV1().Namespaces().Create(ctx(t), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	if err != nil || ns.Labels["seen"] != "shop" {
		t.Errorf("%v %v", ns.Labels, err)
	}
}
