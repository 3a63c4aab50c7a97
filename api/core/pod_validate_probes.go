package core

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	content "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coracle.dev/coracle/api/validate"
)

// hooksAndProbes checks what a container that keeps running can have.
func (c *podCheck) hooksAndProbes(ct *corev1.Container, p *field.Path) {
	if l := ct.Lifecycle; l != nil {
		at := p.Child("lifecycle")
		if l.PostStart != nil {
			c.lifecycleHandler(l.PostStart, at.Child("postStart"))
		}
		if l.PreStop != nil {
			c.lifecycleHandler(l.PreStop, at.Child("preStop"))
		}
	}
	if ct.LivenessProbe != nil {
		c.probe(ct.LivenessProbe, p.Child("livenessProbe"))
		c.onceSuccessful(ct.LivenessProbe, p.Child("livenessProbe"))
	}
	if r := ct.ReadinessProbe; r != nil {
		at := p.Child("readinessProbe")
		c.probe(r, at)
		if r.TerminationGracePeriodSeconds != nil {
			c.invalid(at.Child("terminationGracePeriodSeconds"), r.TerminationGracePeriodSeconds, "must not be set for readinessProbes")
		}
	}
	if ct.StartupProbe != nil {
		c.probe(ct.StartupProbe, p.Child("startupProbe"))
		c.onceSuccessful(ct.StartupProbe, p.Child("startupProbe"))
	}
}

func (c *podCheck) onceSuccessful(pr *corev1.Probe, p *field.Path) {
	if pr.SuccessThreshold != 1 {
		c.invalid(p.Child("successThreshold"), pr.SuccessThreshold, "must be 1")
	}
}

func (c *podCheck) probe(pr *corev1.Probe, p *field.Path) {
	h := c.handler(p)
	h.exec(pr.Exec)
	h.httpGet(pr.HTTPGet)
	h.tcpSocket(pr.TCPSocket)
	h.member(pr.GRPC != nil, "grpc", "grpc", func(p *field.Path) {
		c.add(validate.Port(pr.GRPC.Port, p.Child("port")))
	})
	h.any()
	nonNegative(c.report, pr.InitialDelaySeconds, p, "initialDelaySeconds")
	nonNegative(c.report, pr.TimeoutSeconds, p, "timeoutSeconds")
	nonNegative(c.report, pr.PeriodSeconds, p, "periodSeconds")
	nonNegative(c.report, pr.SuccessThreshold, p, "successThreshold")
	nonNegative(c.report, pr.FailureThreshold, p, "failureThreshold")
	if g := pr.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		c.invalid(p.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0")
	}
}

func (c *podCheck) lifecycleHandler(l *corev1.LifecycleHandler, p *field.Path) {
	h := c.handler(p)
	h.exec(l.Exec)
	h.httpGet(l.HTTPGet)
	h.tcpSocket(l.TCPSocket)
	h.member(l.Sleep != nil, "sleep", "sleep", func(p *field.Path) {
		grace := c.s.TerminationGracePeriodSeconds
		if grace != nil && (l.Sleep.Seconds < 0 || l.Sleep.Seconds > *grace) {
			c.invalid(p, l.Sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *grace))
		}
	})
	h.any()
}

// handlerCheck goes through the union of handlers that probes and hooks share.
type handlerCheck struct{ choice }

func (c *podCheck) handler(p *field.Path) *handlerCheck {
	return &handlerCheck{choice{report: c.report, path: p, several: "may not specify more than 1 handler type"}}
}

func (h *handlerCheck) any() {
	if !h.taken {
		h.report.required(h.path, "must specify a handler type")
	}
}

func (h *handlerCheck) exec(a *corev1.ExecAction) {
	h.member(a != nil, "exec", "exec", func(p *field.Path) {
		if len(a.Command) == 0 {
			h.report.required(p.Child("command"), "")
		}
	})
}

func (h *handlerCheck) httpGet(a *corev1.HTTPGetAction) {
	h.member(a != nil, "httpGet", "httpGet", func(p *field.Path) {
		h.report.need(a.Path, p, "path")
		h.report.add(portNumberOrName(a.Port, p))
		oneOf(h.report, a.Scheme, p, "scheme", corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
		for _, header := range a.HTTPHeaders {
			h.report.invalids(p.Child("httpHeaders"), header.Name, content.IsHTTPHeaderName(header.Name))
		}
	})
}

func (h *handlerCheck) tcpSocket(a *corev1.TCPSocketAction) {
	h.member(a != nil, "tcpSocket", "tcpSocket", func(p *field.Path) {
		h.report.add(portNumberOrName(a.Port, p))
	})
}

// portNumberOrName checks the field "port" below p.
func portNumberOrName(port intstr.IntOrString, p *field.Path) field.ErrorList {
	if port.Type == intstr.Int && port.IntVal >= 1 && port.IntVal <= 65535 {
		return nil
	}
	return validate.PortNumberOrName(port, p.Child("port"))
}
