// Package certificates holds the loops of the API group certificates.k8s.io: they approve the requests that nodes
// make for themselves, sign for the signers of Kubernetes what was approved, remove requests that nobody needs any more,
// and publish by which authority the API server is known.
//
// It owns the conditions that it sets and the certificates that it issues. It never approves for people, and never
// signs for a signer outside of kubernetes.io. The keys are its caller's.
package certificates
