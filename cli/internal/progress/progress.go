// Package progress shows how a deployment goes over its targets: on a terminal
// as a block that is drawn anew, elsewhere as one line for each change. It
// guarantees that nothing is shown twice and that text from hosts cannot
// command the terminal.
package progress

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// Config says where and how to show.
type Config struct {
	Out    io.Writer
	Live   bool       // draw anew in place
	Colour bool       // colour the states
	Width  func() int // of the terminal, 0 for any
	Now    func() time.Time
}

// View shows one deployment.
type View struct {
	cfg   Config
	shown map[string]string // what was last told of each assignment
	state string
	lines int // drawn by the last Show
}

// New makes a view.
func New(cfg Config) *View { return &View{cfg: cfg, shown: map[string]string{}} }

// Target is "host/target".
func Target(s *deployerv1.AssignmentStatus) string {
	return s.GetTarget().GetHost() + "/" + s.GetTarget().GetName()
}

// Show shows the deployment as it is now.
func (v *View) Show(d *deployerv1.Deployment) error {
	if v.cfg.Live {
		return v.draw(d)
	}
	return v.tell(d)
}

// tell writes a line for each assignment that changed and for the whole.
func (v *View) tell(d *deployerv1.Deployment) error {
	var errs []error
	at := v.cfg.Now().Format("15:04:05")
	for _, s := range d.GetStatus().GetAssignments() {
		text := v.status(s)
		if v.shown[s.GetId()] == text {
			continue
		}
		v.shown[s.GetId()] = text
		_, err := fmt.Fprintf(v.cfg.Out, "%s  %s  %s\n", at, output.Clean(Target(s)), text)
		errs = append(errs, err)
	}
	if state := v.summary(d); state != v.state {
		v.state = state
		_, err := fmt.Fprintf(v.cfg.Out, "%s  %s\n", at, state)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// draw replaces the block drawn before.
func (v *View) draw(d *deployerv1.Deployment) error {
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", v.lines)
	}
	width := 0
	for _, s := range d.GetStatus().GetAssignments() {
		width = max(width, utf8.RuneCountInString(output.Clean(Target(s))))
	}
	v.lines = 1
	fmt.Fprintf(&b, "%s\n", v.fit(v.summary(d)))
	for _, s := range d.GetStatus().GetAssignments() {
		fmt.Fprintf(&b, "%s\n", v.fit(fmt.Sprintf("  %-*s  %s", width, output.Clean(Target(s)), v.status(s))))
		v.lines++
	}
	_, err := io.WriteString(v.cfg.Out, b.String())
	return err
}

func (v *View) summary(d *deployerv1.Deployment) string {
	text := fmt.Sprintf("deployment/%s  %s  %s served", output.Clean(d.GetName()), v.paint(output.Word(d.GetStatus().GetState())), kind.Served(d))
	if m := d.GetStatus().GetMessage(); m != "" {
		text += "  " + output.Clean(m)
	}
	return text
}

// status is an assignment's state with what explains it.
func (v *View) status(s *deployerv1.AssignmentStatus) string {
	parts := []string{v.paint(output.Word(s.GetState()))}
	add := func(format string, args ...any) { parts = append(parts, output.Clean(fmt.Sprintf(format, args...))) }
	if g := s.GetGeneration(); g > 1 {
		add("generation %d", g)
	}
	switch s.GetState() {
	case deployerv1.AssignmentState_ASSIGNMENT_STATE_FAILED:
		add("attempt %d: %s (%s)", s.GetAttempt(), s.GetMessage(), s.GetReason())
		if t := s.GetNextAttempt(); t != nil {
			add("next try at %s", clock(t))
		}
		return strings.Join(parts, "  ")
	case deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED:
		add("%s at %s until %s", kind.Short(s.GetServed()), s.GetAddress(), day(s.GetNotAfter()))
	case deployerv1.AssignmentState_ASSIGNMENT_STATE_ISSUED, deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED:
		add("%s until %s", kind.Short(s.GetFingerprint()), day(s.GetNotAfter()))
	}
	if s.GetMessage() != "" {
		add("%s", s.GetMessage())
	}
	return strings.Join(parts, "  ")
}

func clock(t *timestamppb.Timestamp) string { return t.AsTime().Local().Format("15:04:05") }

func day(t *timestamppb.Timestamp) string {
	if t == nil {
		return "?"
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04Z")
}

var colours = map[string]string{
	"served": "32", "healthy": "32", // green
	"failed":    "31",                     // red
	"installed": "33", "unverified": "33", // yellow
}

func (v *View) paint(word string) string {
	if c := colours[word]; c != "" && v.cfg.Colour {
		return "\x1b[" + c + "m" + word + "\x1b[0m"
	}
	return word
}

// fit cuts a line to the terminal's width: a wrapped one could not be drawn over.
func (v *View) fit(line string) string {
	width := 0
	if v.cfg.Width != nil {
		width = v.cfg.Width()
	}
	if width <= 0 {
		return line
	}
	seen, escaped := 0, false
	for i, r := range line {
		switch {
		case escaped:
			escaped = r != 'm'
		case r == '\x1b':
			escaped = true
		default:
			if seen++; seen > width {
				return line[:i] + "\x1b[0m"
			}
		}
	}
	return line
}
