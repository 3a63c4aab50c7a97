// Package validate holds the checks that the kinds of several API groups share:
// names, metadata, labels and selectors, numbers and ports, addresses, resource names and
// quantities. Each returns field errors in upstream's words and costs nothing but the
// look at the value when the value is good.
//
// It wraps k8s.io/apimachinery's validation wherever that has the rule, and never
// knows a kind: the rules of one kind stand in its group's package.
package validate
