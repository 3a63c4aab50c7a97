package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// failJob is the message of the rule of the failure policy that ends the job, "" if none does.
func (p *pass) failJob() string {
	if p.job.Spec.PodFailurePolicy == nil {
		return ""
	}
	for _, pod := range p.pods {
		if !p.isFailed(pod) {
			continue
		}
		if action, message := p.judge(pod); action == batchv1.PodFailurePolicyActionFailJob {
			return message
		}
	}
	return ""
}

// judge finds the first rule of the failure policy that a failed pod matches (KEP-3329).
func (p *pass) judge(pod *corev1.Pod) (batchv1.PodFailurePolicyAction, string) {
	if p.job.Spec.PodFailurePolicy == nil {
		return "", ""
	}
	for i, rule := range p.job.Spec.PodFailurePolicy.Rules {
		if rule.Action == batchv1.PodFailurePolicyActionFailIndex && p.job.Spec.BackoffLimitPerIndex == nil {
			continue
		}
		if rule.OnExitCodes != nil {
			if c := exited(pod, rule.OnExitCodes); c != nil {
				return rule.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d",
					c.Name, pod.Namespace, pod.Name, c.State.Terminated.ExitCode, rule.Action, i)
			}
			continue
		}
		for _, want := range rule.OnPodConditions {
			if slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == want.Type && c.Status == want.Status }) {
				return rule.Action, fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", pod.Namespace, pod.Name, want.Type, rule.Action, i)
			}
		}
	}
	return batchv1.PodFailurePolicyActionCount, ""
}

// exited finds the first container whose exit code the requirement is about.
func exited(pod *corev1.Pod, r *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for i := range statuses {
			c := &statuses[i]
			if r.ContainerName != nil && *r.ContainerName != c.Name || c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 {
				continue
			}
			if slices.Contains(r.Values, c.State.Terminated.ExitCode) == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c
			}
		}
	}
	return nil
}
