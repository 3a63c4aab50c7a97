package flowcontrol

import (
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var everything = []string{"*"}

// on is a rule for resources in every namespace.
func on(cluster bool, verbs, groups, resources []string) flowcontrolv1.ResourcePolicyRule {
	return flowcontrolv1.ResourcePolicyRule{Verbs: verbs, APIGroups: groups, Resources: resources, Namespaces: everything, ClusterScope: cluster}
}

// all is a rule for every request of the subjects.
func all(subjects ...flowcontrolv1.Subject) flowcontrolv1.PolicyRulesWithSubjects {
	return flowcontrolv1.PolicyRulesWithSubjects{
		Subjects:         subjects,
		ResourceRules:    []flowcontrolv1.ResourcePolicyRule{on(true, everything, everything, everything)},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: everything, NonResourceURLs: everything}},
	}
}

func inGroup(name string) flowcontrolv1.Subject {
	return flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: name}}
}

func user(name string) flowcontrolv1.Subject {
	return flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: name}}
}

// SuggestedSchemas returns new objects of the flow schemas that a cluster begins with and that its
// administrators may change
// (https://kubernetes.io/docs/concepts/cluster-administration/flow-control/#suggested-configuration-objects).
func SuggestedSchemas() []*flowcontrolv1.FlowSchema {
	schema := func(name, level string, precedence int32, by flowcontrolv1.FlowDistinguisherMethodType, rules flowcontrolv1.PolicyRulesWithSubjects) *flowcontrolv1.FlowSchema {
		s := &flowcontrolv1.FlowSchema{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: flowcontrolv1.FlowSchemaSpec{
				PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level},
				MatchingPrecedence:         precedence, Rules: []flowcontrolv1.PolicyRulesWithSubjects{rules},
			},
		}
		if by != "" {
			s.Spec.DistinguisherMethod = &flowcontrolv1.FlowDistinguisherMethod{Type: by}
		}
		return s
	}
	const byUser, byNamespace = flowcontrolv1.FlowDistinguisherMethodByUserType, flowcontrolv1.FlowDistinguisherMethodByNamespaceType
	anyone := []flowcontrolv1.Subject{inGroup("system:unauthenticated"), inGroup("system:authenticated")}
	nodes, manager, scheduler := inGroup("system:nodes"), user("system:kube-controller-manager"), user("system:kube-scheduler")
	system := flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindServiceAccount,
		ServiceAccount: &flowcontrolv1.ServiceAccountSubject{Name: flowcontrolv1.NameAll, Namespace: metav1.NamespaceSystem}}
	leases := []string{"leases"}
	coordination := []string{"coordination.k8s.io"}
	return []*flowcontrolv1.FlowSchema{
		schema("system-nodes", "system", 500, byUser, all(nodes)),
		schema("system-node-high", "node-high", 400, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects: []flowcontrolv1.Subject{nodes},
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{
				on(true, everything, []string{""}, []string{"nodes", "nodes/status"}),
				on(false, everything, coordination, leases),
			},
		}),
		schema("probes", flowcontrolv1.PriorityLevelConfigurationNameExempt, 2, "", flowcontrolv1.PolicyRulesWithSubjects{
			Subjects:         anyone,
			NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/readyz", "/livez"}}},
		}),
		schema("system-leader-election", "leader-election", 100, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects:      []flowcontrolv1.Subject{manager, scheduler, system},
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{on(false, []string{"get", "create", "update"}, coordination, leases)},
		}),
		schema("kube-controller-manager", "workload-high", 800, byNamespace, all(manager)),
		schema("kube-scheduler", "workload-high", 800, byNamespace, all(scheduler)),
		schema("kube-system-service-accounts", "workload-high", 900, byNamespace, all(system)),
		schema("service-accounts", "workload-low", 9000, byUser, all(inGroup("system:serviceaccounts"))),
		schema("global-default", "global-default", 9900, byUser, all(anyone...)),
	}
}

// SuggestedLevels returns new objects of the priority levels that go with SuggestedSchemas.
func SuggestedLevels() []*flowcontrolv1.PriorityLevelConfiguration {
	level := func(name string, shares, lendable, queues, hand int32) *flowcontrolv1.PriorityLevelConfiguration {
		return &flowcontrolv1.PriorityLevelConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
				Type: flowcontrolv1.PriorityLevelEnablementLimited,
				Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
					NominalConcurrencyShares: &shares, LendablePercent: &lendable,
					LimitResponse: flowcontrolv1.LimitResponse{
						Type:    flowcontrolv1.LimitResponseTypeQueue,
						Queuing: &flowcontrolv1.QueuingConfiguration{Queues: queues, HandSize: hand, QueueLengthLimit: 50},
					},
				},
			},
		}
	}
	return []*flowcontrolv1.PriorityLevelConfiguration{
		level("system", 30, 33, 64, 6),
		level("node-high", 40, 25, 64, 6),
		level("leader-election", 10, 0, 16, 4),
		level("workload-high", 40, 50, 128, 6),
		level("workload-low", 100, 90, 128, 6),
		level("global-default", 20, 50, 128, 6),
	}
}
