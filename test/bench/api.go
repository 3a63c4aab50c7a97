package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// api measures create, get, status patch and delete as the administrator meets them.
func (b *bench) api() error {
	for _, protobuf := range []bool{true, false} {
		i, _, err := b.start("--nodes=none")
		if err != nil {
			return err
		}
		defer i.remove()
		c, err := i.client(protobuf)
		if err != nil {
			return err
		}
		if err := b.operations(i, c, formOf(protobuf), "default"); err != nil {
			return err
		}
	}
	return nil
}

func formOf(protobuf bool) string {
	if protobuf {
		return "protobuf"
	}
	return "JSON"
}

// operations measures the four operations with a client's rights.
func (b *bench) operations(i *instance, c *kubernetes.Clientset, form, namespace string) error {
	pods := c.CoreV1().Pods(namespace)
	name := func(k int) string { return fmt.Sprintf("bench-%05d", k) }
	patch := []byte(`{"status":{"phase":"Running","podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}]}}`)
	zero := int64(0)
	for _, op := range []struct {
		name, budget string
		do           func(k int) error
	}{
		{"create", "<= 540 us, aim 270", func(k int) error {
			pod := testPod(name(k))
			pod.Namespace = namespace
			_, err := pods.Create(b.ctx, pod, metav1.CreateOptions{})
			return err
		}},
		{"get", "<= 168 us, aim 84", func(k int) error { _, err := pods.Get(b.ctx, name(k), metav1.GetOptions{}); return err }},
		{"status patch", "<= 760 us, aim 380", func(k int) error {
			_, err := pods.Patch(b.ctx, name(k), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
			return err
		}},
		{"delete", "<= 580 us, aim 290", func(k int) error {
			return pods.Delete(b.ctx, name(k), metav1.DeleteOptions{GracePeriodSeconds: &zero})
		}},
	} {
		cpu, wall, err := i.each(objects, op.do)
		if err != nil {
			return fmt.Errorf("%s: %w", op.name, err)
		}
		b.add(fmt.Sprintf("pod %s, %s, 32 clients: server CPU", op.name, form), fmt.Sprintf("%d us", cpu.Microseconds()), op.budget)
		b.add(fmt.Sprintf("pod %s, %s, 32 clients: throughput", op.name, form), fmt.Sprintf("%.0f/s", float64(time.Second)/float64(wall)), "")
	}
	return nil
}

// auditPolicy records who did what, as clusters in production do.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// guarded measures the same with everything on that stands between a client and the store: the token of a service account, its
// rights by RBAC, an audit log, Pod Security, a quota, an admission policy that matches, and a webhook configuration
// that does not.
func (b *bench) guarded() error {
	dir, err := os.MkdirTemp("", "coracle-bench-audit-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	i, _, err := b.start("--nodes=none", "--audit-policy-file", policy, "--audit-log-path", filepath.Join(dir, "audit.log"))
	if err != nil {
		return err
	}
	defer i.remove()
	admin, err := i.client(true)
	if err != nil {
		return err
	}
	token, err := b.guard(admin)
	if err != nil {
		return err
	}
	config, err := i.config(true)
	if err != nil {
		return err
	}
	config = rest.AnonymousClientConfig(config)
	config.BearerToken = token
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = config.ContentType
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	return b.operations(i, c, "protobuf, service account, audit, policy, quota", "guarded")
}

// guard sets the guards up and returns the token of an account that may change pods.
func (b *bench) guard(admin *kubernetes.Clientset) (token string, err error) {
	step := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	const ns = "guarded"
	create := metav1.CreateOptions{}
	meta := metav1.ObjectMeta{Name: "bench", Namespace: ns}
	step(func() error {
		_, err := admin.CoreV1().Namespaces().Create(b.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns,
			Labels: map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}}}, create)
		return err
	})
	step(func() error {
		_, err := admin.CoreV1().ServiceAccounts(ns).Create(b.ctx, &corev1.ServiceAccount{ObjectMeta: meta}, create)
		return err
	})
	step(func() error {
		_, err := admin.RbacV1().Roles(ns).Create(b.ctx, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "pods/status"}, Verbs: []string{"*"}}}}, create)
		return err
	})
	step(func() error {
		_, err := admin.RbacV1().RoleBindings(ns).Create(b.ctx, &rbacv1.RoleBinding{ObjectMeta: meta,
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "bench"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "bench", Namespace: ns}}}, create)
		return err
	})
	step(func() error {
		_, err := admin.CoreV1().ResourceQuotas(ns).Create(b.ctx, quota(meta), create)
		return err
	})
	step(func() error { return b.policy(admin) })
	step(func() error {
		var answer *authenticationv1.TokenRequest
		answer, err := admin.CoreV1().ServiceAccounts(ns).CreateToken(b.ctx, "bench", &authenticationv1.TokenRequest{}, create)
		if err == nil {
			token = answer.Status.Token
		}
		return err
	})
	return token, err
}

func quota(meta metav1.ObjectMeta) *corev1.ResourceQuota {
	return &corev1.ResourceQuota{ObjectMeta: meta, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
		corev1.ResourcePods: *quantity("1000000")}}}
}

// policy makes an admission policy for pods, and a webhook for something else.
func (b *bench) policy(admin *kubernetes.Clientset) error {
	create := metav1.CreateOptions{}
	rules := func(resource string) admissionregistrationv1.RuleWithOperations {
		return admissionregistrationv1.RuleWithOperations{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{resource}},
		}
	}
	meta := metav1.ObjectMeta{Name: "bench"}
	_, err := admin.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(b.ctx, &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: meta,
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: rules("pods")}}},
			Validations: []admissionregistrationv1.Validation{{
				Expression: "object.spec.containers.all(c, !c.image.endsWith(':latest'))", Message: "images need a tag"}},
		}}, create)
	if err != nil {
		return err
	}
	_, err = admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(b.ctx, &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "bench",
			ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny}}}, create)
	if err != nil {
		return err
	}
	url, none := "https://127.0.0.1:1/", admissionregistrationv1.SideEffectClassNone
	_, err = admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(b.ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: meta, Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "bench.example.com", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url}, SideEffects: &none,
			AdmissionReviewVersions: []string{"v1"}, Rules: []admissionregistrationv1.RuleWithOperations{rules("configmaps")}}}}, create)
	return err
}
