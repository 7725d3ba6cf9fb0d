package dockerfile

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// reachable returns the stages that a stage needs, itself included.
func reachable(s *stage) map[*stage]bool {
	out := map[*stage]bool{}
	todo := []*stage{s}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if out[s] {
			continue
		}
		out[s] = true
		if s.base != nil && s.context == nil {
			todo = append(todo, s.base)
		}
		for _, d := range s.deps {
			todo = append(todo, d.on)
		}
	}
	return out
}

// resolveStages finds the bases of the stages that the target needs, until
// ONBUILD triggers bring no new ones.
func (l *lowering) resolveStages() error {
	for {
		l.reached = reachable(l.target)
		if l.in.all {
			for _, s := range l.stages {
				maps.Copy(l.reached, reachable(s))
			}
		}
		again := false
		for i := 0; i < len(l.stages); i++ { // triggers may append stages
			s := l.stages[i]
			if !l.reached[s] {
				continue
			}
			if s.base == nil && !s.resolved {
				if err := l.resolveBase(s); err != nil {
					return err
				}
			}
			more, err := l.addTriggers(s)
			if err != nil {
				return err
			}
			again = again || more
		}
		if !again {
			return nil
		}
		if err := l.refuseCircles(); err != nil {
			return err
		}
	}
}

// addTriggers puts the ONBUILD triggers of a stage's base before its commands.
// It reports whether they read from other stages.
func (l *lowering) addTriggers(s *stage) (more bool, err error) {
	if s.decl == nil || s.triggered || (s.base == nil && !s.resolved) {
		return false, nil
	}
	s.triggered = true
	if s.base != nil {
		const size = 128 // of a command, in bytes
		if err := l.spend(size*s.base.triggers, s.nameSpan); err != nil {
			return false, err
		}
	}
	var triggers []command
	if s.base != nil {
		for _, c := range s.base.commands {
			if o, ok := c.Instruction.(*syntax.Onbuild); ok {
				if o.Inner == nil {
					return false, l.errorAt(s.nameSpan, fmt.Sprintf("ONBUILD trigger %q of stage %s: %s", o.Trigger, s.base.name, o.Broken[0].Text()), "", "")
				}
				triggers = append(triggers, command{Instruction: o.Inner})
			}
		}
	} else if s.config != nil {
		for _, text := range s.config.Config.OnBuild {
			inner, err := syntax.ParseTrigger(text, syntax.DockerfileWords(), l.in.file.Extensions)
			if err != nil {
				return false, l.errorAt(s.nameSpan, fmt.Sprintf("ONBUILD trigger %q of %s: %v", text, s.image, err), "", "")
			}
			triggers = append(triggers, command{Instruction: inner, foreign: true})
		}
		s.config.Config.OnBuild = nil
	}
	for i, t := range triggers {
		c, err := l.planCommand(s, t.Instruction)
		if err != nil {
			return false, l.relocate(err, t, s)
		}
		c.trigger, c.foreign = true, t.foreign
		triggers[i] = c
		more = more || len(c.sources) > 0
	}
	s.steps += len(triggers) // of all kinds, as BuildKit numbers them
	s.commands = append(triggers, s.commands...)
	return more, nil
}

// resolveBase finds a stage's base that is no stage. Without the facts for it,
// they are needed, and the stage stays unresolved.
func (l *lowering) resolveBase(s *stage) error {
	platform := l.platformOf(s)
	if s.context != nil {
		return l.resolveContext(s, s.context, platform)
	}
	if s.image == scratch {
		s.config = emptyConfig(l.in.target)
		s.platform = &l.in.target
		s.resolved, s.done = true, s.decl == nil
		return nil
	}
	named, err := reference.ParseNormalizedNamed(s.image)
	if err != nil {
		return l.errorAt(s.nameSpan, fmt.Sprintf("%q is no image reference", s.image), "a reference such as alpine:3.20 or a stage above", syntax.Suggest(s.image, l.stageNames()))
	}
	named = reference.TagNameOnly(named)
	if context, err := l.namedContext(named.String(), platform); err != nil || context != nil {
		if err != nil {
			return err
		}
		return l.resolveContext(s, context, platform)
	}
	prefix := "[internal]"
	if l.in.opts.multiPlatform {
		prefix = "[" + platforms.FormatAll(platform) + " internal]"
	}
	attrs := map[string]string{}
	if l.in.opts.resolveMode != "default" {
		attrs["image.resolvemode"] = l.in.opts.resolveMode
	}
	fact := l.image(imageQuery{
		op: llb.SourceOp{Identifier: "docker-image://" + named.String(), Attrs: attrs}, platform: platform,
		mode: l.in.opts.resolveMode, log: prefix + " load metadata for " + named.String(),
		name: s.image, at: s.nameSpan, stages: l.stageNames(), laterStage: l.laterStage(s),
	})
	if fact == nil {
		return nil
	}
	config, err := parseConfig(fact.config)
	if err != nil {
		return l.errorAt(s.nameSpan, fmt.Sprintf("image %s: %v", s.image, err), "", "")
	}
	s.baseConfig = config.clone()
	config.Created = nil
	s.config, s.platform = config, &platform
	s.resolved, s.done = true, s.decl == nil
	if config.OS != platform.OS || config.Architecture != platform.Architecture {
		l.lint.remark(ruleBasePlatform, s.head, s.head.Line, "image %s is for %s, the build is for %s", s.image,
			platforms.FormatAll(platforms.Normalize(config.Platform)), platforms.FormatAll(platform))
	}
	if !config.withoutFiles() {
		s.baseSource = &fact.op
	}
	if s.done {
		l.openBase(s)
	}
	return nil
}

// openBase makes the vertex of a stage's base image. The number of the stage's
// steps, which its name tells, has to be known.
func (l *lowering) openBase(s *stage) {
	if s.baseSource == nil {
		return
	}
	ref := strings.TrimPrefix(s.baseSource.Identifier, "docker-image://")
	name := l.stepName(s, l.word(syntax.VerbFrom)+" "+ref, s.platform, &environment{})
	s.state.edge = l.source(*s.baseSource, s.platform, name, s.head)
}

// laterStage tells where a stage of this name is declared further down, for
// names that turn out to be no image either.
func (l *lowering) laterStage(s *stage) int {
	if later, ok := l.byName[strings.ToLower(s.image)]; ok && later != s {
		return l.in.file.Source.Position(later.head.Line.Start).Line
	}
	return 0
}
