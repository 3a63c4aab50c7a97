package simulated

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// ParseStages reads a YAML document (docs/simulated.md describes the format). It tells everything that is wrong at once, each with
// name, the name of the file, and its line.
func ParseStages(name string, data []byte) (*Stages, error) {
	p := &stagesParser{name: name, used: map[string]bool{}}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := decoder.Decode(&more); err == nil {
		p.fail(&more, "one document is expected")
	}
	s := &Stages{}
	var version, kind string
	root := doc.Content[0]
	p.object(root, map[string]func(*yaml.Node){
		"apiVersion": p.text(&version), "kind": p.text(&kind),
		"seed":  func(n *yaml.Node) { s.Seed = p.unsigned(n) },
		"pods":  p.list(func(n *yaml.Node) { s.Pods = append(s.Pods, p.podStage(n)) }),
		"nodes": p.list(func(n *yaml.Node) { s.Nodes = append(s.Nodes, p.nodeStage(n)) }),
	})
	if version != StagesVersion || kind != StagesKind {
		p.fail(root, "apiVersion and kind must be %s and %s", StagesVersion, StagesKind)
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return s, nil
}

// stagesParser collects what is wrong.
type stagesParser struct {
	name string
	used map[string]bool // names of stages, which draws come from
	errs []error
}

func (p *stagesParser) fail(n *yaml.Node, format string, args ...any) {
	const most = 20
	if len(p.errs) < most {
		p.errs = append(p.errs, fmt.Errorf("%s:%d: %s", p.name, n.Line, fmt.Sprintf(format, args...)))
	}
}

// object reads a mapping, each key with the function of its name, and refuses all other keys.
func (p *stagesParser) object(n *yaml.Node, fields map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		p.fail(n, "a mapping is expected")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read := fields[key.Value]
		switch {
		case read == nil:
			known := make([]string, 0, len(fields))
			for name := range fields {
				known = append(known, name)
			}
			slices.Sort(known)
			p.fail(key, "unknown field %q; known are %s", key.Value, strings.Join(known, ", "))
		case seen[key.Value]:
			p.fail(key, "%s is given twice", key.Value)
		default:
			seen[key.Value] = true
			read(value)
		}
	}
}

func (p *stagesParser) list(each func(*yaml.Node)) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.SequenceNode {
			p.fail(n, "a list is expected")
			return
		}
		for _, item := range n.Content {
			each(item)
		}
	}
}

// scalar is the text of a value.
func (p *stagesParser) scalar(n *yaml.Node) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.fail(n, "a single value is expected")
		return "", false
	}
	return n.Value, true
}

func (p *stagesParser) text(to *string) func(*yaml.Node) {
	return func(n *yaml.Node) { *to, _ = p.scalar(n) }
}

func (p *stagesParser) unsigned(n *yaml.Node) uint64 {
	v, ok := p.scalar(n)
	if !ok {
		return 0
	}
	u, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		p.fail(n, "%q is not a whole number from 0", v)
	}
	return u
}

func (p *stagesParser) number(to *int, least, most int) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, ok := p.scalar(n)
		if !ok {
			return
		}
		i, err := strconv.Atoi(v)
		if err != nil || i < least || i > most {
			p.fail(n, "%q is not a whole number from %d to %d", v, least, most)
			return
		}
		*to = i
	}
}

// delay reads "3s" or "1s..3s".
func (p *stagesParser) delay(to *Delay) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, ok := p.scalar(n)
		if !ok {
			return
		}
		least, most, both := strings.Cut(v, "..")
		if !both {
			most = least
		}
		a, err1 := time.ParseDuration(strings.TrimSpace(least))
		b, err2 := time.ParseDuration(strings.TrimSpace(most))
		if err1 != nil || err2 != nil || a < 0 || b < a {
			p.fail(n, `%q is not a time; write "10s", or "1s..3s" for anything between`, v)
			return
		}
		*to = Delay{a, b}
	}
}

// chance reads "5%" or 0.05.
func (p *stagesParser) chance(to *float64) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, ok := p.scalar(n)
		if !ok {
			return
		}
		digits, percent := strings.CutSuffix(v, "%")
		f, err := strconv.ParseFloat(digits, 64)
		if percent {
			f /= 100
		}
		if err != nil || !(f >= 0 && f <= 1) {
			p.fail(n, `%q is not a chance; write "5%%" or 0.05`, v)
			return
		}
		*to = f
	}
}

func (p *stagesParser) texts(to *[]string, check func(string) error) func(*yaml.Node) {
	return p.list(func(n *yaml.Node) {
		v, ok := p.scalar(n)
		if !ok {
			return
		}
		if check != nil {
			if err := check(v); err != nil {
				p.fail(n, "%q: %v", v, err)
				return
			}
		}
		*to = append(*to, v)
	})
}

func pattern(s string) error { _, err := path.Match(s, ""); return err }

func (p *stagesParser) selector(to *labels.Selector) func(*yaml.Node) {
	return func(n *yaml.Node) {
		v, ok := p.scalar(n)
		if !ok {
			return
		}
		s, err := labels.Parse(v)
		if err != nil {
			p.fail(n, "selector: %v", err)
			return
		}
		*to = s
	}
}

// common are the fields that all stages have.
func (p *stagesParser) common(s *Stage, pods bool) map[string]func(*yaml.Node) {
	s.Chance = 1
	selection := map[string]func(*yaml.Node){
		"names":  p.texts(&s.Select.Names, pattern),
		"labels": p.selector(&s.Select.Labels), "annotations": p.selector(&s.Select.Annotations),
	}
	if pods {
		selection["nodes"] = p.texts(&s.Select.Nodes, pattern)
		selection["namespaces"] = p.texts(&s.Select.Namespaces, pattern)
		selection["owners"] = p.texts(&s.Select.Owners, nil)
	}
	return map[string]func(*yaml.Node){
		"name": p.text(&s.Name), "after": p.delay(&s.After), "chance": p.chance(&s.Chance),
		"weight": p.number(&s.Weight, 1, 1_000_000), "times": p.number(&s.Times, 1, 1_000_000),
		"select": func(n *yaml.Node) { p.object(n, selection) },
	}
}

// forVerb refuses fields that mean nothing for a verb: those of only, unless the verb is among theirs.
func (p *stagesParser) forVerb(n *yaml.Node, verb Verb, only map[string][]Verb) {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if verbs, ok := only[key.Value]; ok && verb != "" && !slices.Contains(verbs, verb) {
			p.fail(key, "%s means nothing for a stage that does %s", key.Value, verb)
		}
	}
}

// froms are the states in which pods can meet a verb.
var froms = map[Verb][]State{
	Start: {Pending, Waiting}, Wait: {Pending}, GetReady: {Running, NotReady}, Unready: {Running, Ready},
	Exit: {Running, Ready, NotReady}, Fail: {Pending, Waiting, Running, Ready, NotReady}, Remove: {Terminating},
}

func (p *stagesParser) podStage(n *yaml.Node) PodStage {
	var s PodStage
	var from, do string
	var code int
	fields := p.common(&s.Stage, true)
	fields["from"], fields["do"] = p.text(&from), p.text(&do)
	fields["init"], fields["code"] = p.delay(&s.Init), p.number(&code, 0, 255)
	fields["reason"], fields["message"] = p.text(&s.Reason), p.text(&s.Message)
	fields["containers"] = p.texts(&s.Containers, nil)
	p.object(n, fields)
	s.From, s.Do, s.Code = State(from), Verb(do), int32(code)
	p.named(n, &s.Stage)
	switch states, ok := froms[s.Do]; {
	case !ok:
		p.fail(n, "do must be one of start, wait, ready, unready, exit, fail, remove")
	case !slices.Contains(states, s.From):
		p.fail(n, "a stage that does %s has one of these in from: %v", s.Do, states)
	}
	p.forVerb(n, s.Do, map[string][]Verb{"init": {Start}, "code": {Exit}, "containers": {Exit},
		"reason": {Wait, Fail, Exit}, "message": {Wait, Fail, Exit}})
	if s.Reason == "" && (s.Do == Wait || s.Do == Fail) {
		p.fail(n, "a stage that does %s needs a reason", s.Do)
	}
	return s
}

func (p *stagesParser) named(n *yaml.Node, s *Stage) {
	switch {
	case s.Name == "":
		p.fail(n, "a stage needs a name")
	case p.used[s.Name]:
		p.fail(n, "there is another stage %q", s.Name)
	}
	p.used[s.Name] = true
}

func (p *stagesParser) nodeStage(n *yaml.Node) NodeStage {
	var s NodeStage
	var do, condition, status string
	fields := p.common(&s.Stage, false)
	fields["do"], fields["for"] = p.text(&do), p.delay(&s.For)
	fields["reason"], fields["message"] = p.text(&s.Reason), p.text(&s.Message)
	fields["condition"], fields["status"] = p.text(&condition), p.text(&status)
	fields["taints"] = p.list(func(n *yaml.Node) {
		if v, ok := p.scalar(n); ok {
			if t, ok := taint(v); ok {
				s.Taints = append(s.Taints, t)
			} else {
				p.fail(n, `%q is not a taint; write "key=value:Effect" or "key:Effect" with one of the effects NoSchedule, PreferNoSchedule, NoExecute`, v)
			}
		}
	})
	p.object(n, fields)
	p.named(n, &s.Stage)
	s.Do, s.Condition, s.Status = Verb(do), corev1.NodeConditionType(condition), corev1.ConditionStatus(status)
	if !slices.Contains([]Verb{NodeNotReady, NodeSilent, NodeReboot, NodeTaint, NodeCondition}, s.Do) {
		p.fail(n, "do must be one of notReady, silent, reboot, taint, condition")
	}
	p.forVerb(n, s.Do, map[string][]Verb{"taints": {NodeTaint}, "condition": {NodeCondition}, "status": {NodeCondition},
		"reason": {NodeNotReady, NodeCondition}, "message": {NodeNotReady, NodeCondition}})
	switch s.Do {
	case NodeTaint:
		if len(s.Taints) == 0 {
			p.fail(n, "a stage that does taint needs taints")
		}
	case NodeReboot:
		if s.For == (Delay{}) {
			p.fail(n, "a stage that does reboot needs for, the time that it takes")
		}
	case NodeCondition:
		if s.Condition == "" || !slices.Contains([]corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}, s.Status) {
			p.fail(n, `a stage that does condition needs a condition, and a status "True", "False" or "Unknown"`)
		}
	}
	return s
}

// taint reads key=value:Effect.
func taint(s string) (corev1.Taint, bool) {
	what, effect, ok := strings.Cut(s, ":")
	key, value, _ := strings.Cut(what, "=")
	t := corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)}
	known := t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectPreferNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	return t, ok && key != "" && known
}
