package scheduler

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"sigs.k8s.io/yaml"
)

// Configuration is what a KubeSchedulerConfiguration says
// (kubernetes.io/docs/reference/config-api/kube-scheduler-config.v1).
type Configuration struct {
	Profiles  []*Profile
	Extenders []*Extender
	// FirstBackoff and MostBackoff bound the wait of a pod that was refused.
	FirstBackoff, MostBackoff time.Duration
}

// configuration is the file's form. What concerns other processes (leader election, connections), and how many nodes are scored, is
// accepted and has no effect.
type configuration struct {
	metav1.TypeMeta          `json:",inline"`
	Parallelism              *int32          `json:"parallelism"`
	LeaderElection           json.RawMessage `json:"leaderElection"`
	ClientConnection         json.RawMessage `json:"clientConnection"`
	EnableProfiling          *bool           `json:"enableProfiling"`
	EnableContention         *bool           `json:"enableContentionProfiling"`
	PercentageOfNodesToScore *int32          `json:"percentageOfNodesToScore"`
	PodInitialBackoffSeconds *int64          `json:"podInitialBackoffSeconds"`
	PodMaxBackoffSeconds     *int64          `json:"podMaxBackoffSeconds"`
	DelayCacheUntilActive    bool            `json:"delayCacheUntilActive"`
	Profiles                 []profileFile   `json:"profiles"`
	Extenders                []*Extender     `json:"extenders"`
}

type profileFile struct {
	SchedulerName            string               `json:"schedulerName"`
	PercentageOfNodesToScore *int32               `json:"percentageOfNodesToScore"`
	Plugins                  map[string]pluginSet `json:"plugins"`
	PluginConfig             []struct {
		Name string          `json:"name"`
		Args json.RawMessage `json:"args"`
	} `json:"pluginConfig"`
}

type pluginSet struct {
	Enabled  []plugin `json:"enabled"`
	Disabled []plugin `json:"disabled"`
}

type plugin struct {
	Name   string `json:"name"`
	Weight *int32 `json:"weight"`
}

// ParseConfiguration reads a KubeSchedulerConfiguration. Unknown fields and plugins are errors.
func ParseConfiguration(data []byte) (*Configuration, error) {
	var file configuration
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		return nil, err
	}
	if file.APIVersion != "kubescheduler.config.k8s.io/v1" || file.Kind != "KubeSchedulerConfiguration" {
		return nil, fmt.Errorf("it is %s %s, and has to be kubescheduler.config.k8s.io/v1 KubeSchedulerConfiguration", file.APIVersion, file.Kind)
	}
	c := &Configuration{FirstBackoff: firstBackoff, MostBackoff: mostBackoff, Extenders: file.Extenders}
	var errs []error
	if s := file.PodInitialBackoffSeconds; s != nil {
		if c.FirstBackoff = time.Duration(*s) * time.Second; *s <= 0 {
			errs = append(errs, errors.New("podInitialBackoffSeconds: must be greater than 0"))
		}
	}
	if s := file.PodMaxBackoffSeconds; s != nil {
		c.MostBackoff = time.Duration(*s) * time.Second
	}
	if c.MostBackoff < c.FirstBackoff {
		errs = append(errs, errors.New("podMaxBackoffSeconds: must be greater than or equal to PodInitialBackoffSeconds"))
	}
	if len(file.Profiles) == 0 {
		file.Profiles = []profileFile{{}}
	}
	for i := range file.Profiles {
		p, err := file.Profiles[i].profile()
		if err != nil {
			errs = append(errs, fmt.Errorf("profiles[%d]: %w", i, err))
		} else if slices.ContainsFunc(c.Profiles, func(o *Profile) bool { return o.Name == p.Name }) {
			errs = append(errs, fmt.Errorf("profiles[%d].schedulerName: there is another profile %q", i, p.Name))
		} else {
			c.Profiles = append(c.Profiles, p)
		}
	}
	errs = append(errs, c.checkExtenders()...)
	return c, errors.Join(errs...)
}

// checkExtenders completes the extenders, and leaves what they manage alone to them.
func (c *Configuration) checkExtenders() []error {
	var errs []error
	binders := 0
	var alone []string
	for i, e := range c.Extenders {
		if err := e.complete(); err != nil {
			errs = append(errs, fmt.Errorf("extenders[%d]: %w", i, err))
		}
		if e.BindVerb != "" {
			binders++
		}
		for _, r := range e.ManagedResources {
			if r.IgnoredByScheduler {
				alone = append(alone, r.Name)
			}
		}
	}
	if binders > 1 {
		errs = append(errs, fmt.Errorf("extenders: found %d extenders implementing bind, and only one may", binders))
	}
	if len(alone) > 0 {
		for _, p := range c.Profiles {
			before := p.ignored
			p.ignored = func(name corev1.ResourceName) bool {
				return before != nil && before(name) || slices.Contains(alone, string(name))
			}
		}
	}
	return errs
}

func (f *profileFile) profile() (*Profile, error) {
	p := DefaultProfile(cmp.Or(f.SchedulerName, Name))
	var errs []error
	points := slices.Sorted(maps.Keys(f.Plugins))
	slices.SortStableFunc(points, func(a, b string) int { // what is said of one point weighs more than of all
		return cmp.Compare(b2i(b == "multiPoint"), b2i(a == "multiPoint"))
	})
	for _, point := range points {
		if err := p.apply(point, f.Plugins[point]); err != nil {
			errs = append(errs, fmt.Errorf("plugins.%s: %w", point, err))
		}
	}
	for _, c := range f.PluginConfig {
		if err := p.configure(c.Name, c.Args); err != nil {
			errs = append(errs, fmt.Errorf("pluginConfig of %s: %w", c.Name, err))
		}
	}
	return p, errors.Join(errs...)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// others are plugins that neither refuse nor score nodes, or do it always.
var others = []string{"SchedulingGates", "PrioritySort", "NodeName", "DefaultPreemption", "DefaultBinder"}

// extensionPoints are those that a configuration can name; only some of them make a difference by themselves.
var extensionPoints = []string{"preEnqueue", "queueSort", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "permit", "preBind", "bind", "postBind", "multiPoint"}

// apply takes plugins out at one extension point and then puts some in.
func (p *Profile) apply(point string, set pluginSet) error {
	if !slices.Contains(extensionPoints, point) {
		return errors.New("there is no such extension point")
	}
	all := point == "multiPoint"
	change := func(one plugin, on bool) error {
		known := one.Name == "*" && !on || slices.Contains(others, one.Name) || ruleNames[one.Name] != 0 || p.weight(one.Name) != nil
		switch {
		case !known:
			return fmt.Errorf("plugin %q is not known; there are %s", one.Name, strings.Join(plugins(), ", "))
		case !on && slices.Contains([]string{"PrioritySort", "DefaultBinder", "SchedulingGates"}, one.Name):
			return fmt.Errorf("%s cannot be disabled: there is no other in its place", one.Name)
		}
		if (all || point == "postFilter") && (one.Name == "*" || one.Name == "DefaultPreemption") {
			p.noPreemption = !on
		}
		if all || point == "filter" {
			for name, r := range ruleNames {
				if one.Name == name || one.Name == "*" {
					if p.off |= r; on {
						p.off &^= r
					}
				}
			}
		}
		if all || point == "score" {
			p.setWeight(one, on)
		}
		return nil
	}
	var errs []error
	for _, one := range set.Disabled {
		errs = append(errs, change(one, false))
	}
	for _, one := range set.Enabled {
		errs = append(errs, change(one, true))
	}
	return errors.Join(errs...)
}

func (p *Profile) setWeight(one plugin, on bool) {
	for i := range scorings {
		if one.Name != scorings[i].name && one.Name != "*" {
			continue
		}
		p.weights[i] = 0
		if on {
			p.weights[i] = 1
			if one.Weight != nil && *one.Weight != 0 {
				p.weights[i] = int64(*one.Weight)
			}
		}
	}
}

// plugins are all names that a configuration can use.
func plugins() []string {
	all := append(slices.Collect(maps.Keys(ruleNames)), others...)
	for i := range scorings {
		all = append(all, scorings[i].name)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

type utilization struct {
	Utilization int64 `json:"utilization"`
	Score       int64 `json:"score"`
}

// newShape reads points whose scores are from 0 to 10.
func newShape(points []utilization) (shape, error) {
	if len(points) == 0 {
		return nil, errors.New("at least one point must be specified")
	}
	var s shape
	for i, p := range points {
		switch {
		case p.Utilization < 0 || p.Utilization > 100:
			return nil, errors.New("utilization: not in valid range [0-100]")
		case i > 0 && p.Utilization <= points[i-1].Utilization:
			return nil, errors.New("utilization: values must be sorted in increasing order")
		case p.Score < 0 || p.Score > maxExtenderScore:
			return nil, errors.New("score: not in valid range [0-10]")
		}
		s = append(s, point{p.Utilization, p.Score * (maxScore / maxExtenderScore)})
	}
	return s, nil
}

type resourceWeight struct {
	Name   string `json:"name"`
	Weight int64  `json:"weight"`
}

// configure reads the arguments of one plugin.
func (p *Profile) configure(name string, args json.RawMessage) error {
	if len(args) == 0 {
		return nil
	}
	read := func(into any) error { return yaml.UnmarshalStrict(args, into) }
	switch name {
	case "NodeAffinity":
		return p.configureNodeAffinity(read)
	case "PodTopologySpread":
		return p.configureSpread(read)
	case "NodeResourcesFit":
		return p.configureFit(read)
	case "InterPodAffinity":
		var a struct {
			metav1.TypeMeta `json:",inline"`
			Hard            *int64 `json:"hardPodAffinityWeight"`
			Ignore          bool   `json:"ignorePreferredTermsOfExistingPods"`
		}
		if err := read(&a); err != nil {
			return err
		}
		if p.ownTermsOnly = a.Ignore; a.Hard != nil {
			if p.hard = *a.Hard; p.hard < 0 || p.hard > 100 {
				return errors.New("hardPodAffinityWeight: not in valid range [0-100]")
			}
		}
	case "DefaultPreemption":
		var a struct {
			metav1.TypeMeta `json:",inline"`
			Share           *int `json:"minCandidateNodesPercentage"`
			Least           *int `json:"minCandidateNodesAbsolute"`
		}
		if err := read(&a); err != nil {
			return err
		}
		if a.Share != nil {
			p.candidatesShare = *a.Share
		}
		if a.Least != nil {
			p.candidatesLeast = *a.Least
		}
		if p.candidatesShare < 0 || p.candidatesShare > 100 || p.candidatesLeast < 0 || p.candidatesShare+p.candidatesLeast == 0 {
			return errors.New("minCandidateNodesPercentage has to be from 0 to 100, minCandidateNodesAbsolute 0 or more, and not both 0")
		}
	case "VolumeBinding":
		return p.configureVolumes(read)
	case "NodeResourcesBalancedAllocation":
		var a struct {
			metav1.TypeMeta `json:",inline"`
			Resources       []resourceWeight `json:"resources"`
		}
		if err := read(&a); err != nil {
			return err
		}
		for _, r := range a.Resources {
			if r.Name != "cpu" && r.Name != "memory" {
				return fmt.Errorf("resources: only cpu and memory are balanced here, not %q", r.Name)
			}
		}
	default:
		return errors.New("the plugin is not known or takes no arguments")
	}
	return nil
}

func (p *Profile) configureVolumes(read func(any) error) error {
	var a struct {
		metav1.TypeMeta `json:",inline"`
		Timeout         *int64        `json:"bindTimeoutSeconds"`
		Shape           []utilization `json:"shape"`
	}
	if err := read(&a); err != nil {
		return err
	}
	if a.Timeout != nil {
		if p.bindTimeout = time.Duration(*a.Timeout) * time.Second; *a.Timeout < 0 {
			return errors.New("bindTimeoutSeconds: invalid BindTimeoutSeconds, should not be a negative value")
		}
	}
	if len(a.Shape) == 0 {
		return nil
	}
	s, err := newShape(a.Shape)
	p.volumes = s
	return err
}

func (p *Profile) configureNodeAffinity(read func(any) error) error {
	var a struct {
		metav1.TypeMeta `json:",inline"`
		Added           *corev1.NodeAffinity `json:"addedAffinity"`
	}
	if err := read(&a); err != nil || a.Added == nil {
		return err
	}
	if required := a.Added.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
		s, err := nodeaffinity.NewNodeSelector(required)
		if err != nil {
			return fmt.Errorf("addedAffinity: %w", err)
		}
		p.enforced = s
	}
	p.prefers = a.Added.PreferredDuringSchedulingIgnoredDuringExecution
	_, err := nodeaffinity.NewPreferredSchedulingTerms(p.prefers)
	return err
}

func (p *Profile) configureSpread(read func(any) error) error {
	var a struct {
		metav1.TypeMeta `json:",inline"`
		Constraints     []corev1.TopologySpreadConstraint `json:"defaultConstraints"`
		Type            string                            `json:"defaultingType"`
	}
	if err := read(&a); err != nil {
		return err
	}
	if a.Type == "" && len(a.Constraints) > 0 {
		a.Type = "List"
	}
	switch {
	case a.Type != "" && a.Type != "List" && a.Type != "System":
		return fmt.Errorf(`defaultingType: %q is neither "System" nor "List"`, a.Type)
	case a.Type != "List" && len(a.Constraints) > 0:
		return errors.New("defaultConstraints: when .defaultingType is System the list must be empty")
	}
	for i, c := range a.Constraints {
		switch {
		case c.MaxSkew <= 0:
			return fmt.Errorf("defaultConstraints[%d].maxSkew: must be greater than zero", i)
		case c.TopologyKey == "":
			return fmt.Errorf("defaultConstraints[%d].topologyKey: can not be empty", i)
		case c.LabelSelector != nil:
			return fmt.Errorf("defaultConstraints[%d].labelSelector: constraint must not define a selector, as they deduced for each pod", i)
		case c.WhenUnsatisfiable != corev1.DoNotSchedule && c.WhenUnsatisfiable != corev1.ScheduleAnyway:
			return fmt.Errorf("defaultConstraints[%d].whenUnsatisfiable: %q is not known", i, c.WhenUnsatisfiable)
		}
	}
	p.defaults, p.plain = a.Constraints, a.Type == "List"
	return nil
}

func (p *Profile) configureFit(read func(any) error) error {
	var a struct {
		metav1.TypeMeta `json:",inline"`
		Ignored         []string `json:"ignoredResources"`
		Groups          []string `json:"ignoredResourceGroups"`
		Strategy        *struct {
			Type      string           `json:"type"`
			Resources []resourceWeight `json:"resources"`
			Ratio     *struct {
				Shape []utilization `json:"shape"`
			} `json:"requestedToCapacityRatio"`
		} `json:"scoringStrategy"`
	}
	if err := read(&a); err != nil {
		return err
	}
	if len(a.Ignored)+len(a.Groups) > 0 {
		p.ignored = func(name corev1.ResourceName) bool {
			group, _, grouped := strings.Cut(string(name), "/")
			return slices.Contains(a.Ignored, string(name)) || grouped && slices.Contains(a.Groups, group)
		}
	}
	if a.Strategy == nil {
		return nil
	}
	s := &strategy{}
	if len(a.Strategy.Resources) == 0 {
		a.Strategy.Resources = []resourceWeight{{"cpu", 1}, {"memory", 1}}
	}
	for _, r := range a.Strategy.Resources {
		if r.Weight < 0 || r.Weight > 100 {
			return fmt.Errorf("scoringStrategy: resource weight of %s not in valid range [1-100]", r.Name)
		}
		s.resources = append(s.resources, weighted{corev1.ResourceName(r.Name), max(r.Weight, 1)})
	}
	switch a.Strategy.Type {
	case "LeastAllocated", "":
		s.score = func(asked, capacity int64) int64 { return free(capacity, asked) }
	case "MostAllocated":
		s.score = mostAllocated
	case "RequestedToCapacityRatio":
		if a.Strategy.Ratio == nil {
			return errors.New("scoringStrategy.requestedToCapacityRatio: at least one point must be specified")
		}
		line, err := newShape(a.Strategy.Ratio.Shape)
		if err != nil {
			return fmt.Errorf("scoringStrategy.requestedToCapacityRatio.shape: %w", err)
		}
		s.score, s.sparse = line.ratio, true
	default:
		return fmt.Errorf("scoringStrategy.type: %q is not known", a.Strategy.Type)
	}
	p.fit = s
	return nil
}
