package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
	"github.com/sallyport-pki/sallyport/cli/internal/progress"
)

const (
	// watchPause is between tries to reach a server that went away meanwhile.
	watchPause = time.Second
)

func (a *app) watchCommand() *cobra.Command {
	deployment, _ := kind.Find(kind.All(), "deployment")
	var timeout span
	below := &cobra.Command{
		Use:   "deployment NAME",
		Short: "Follow a deployment until it is served, unverified or failed",
		Long: `Follow a deployment, one line for each step of each target, until its end:

  0   every target was seen serving what was assigned
  6   a target has failed (the services try again by themselves)
  7   --timeout is over
  9   all is installed, but some target could not be seen serving it

If the server goes away meanwhile, watch waits for it.`,
		Aliases: append([]string{deployment.Plural}, deployment.Aliases...),
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout.Duration > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout.Std())
				defer cancel()
			}
			return a.watch(ctx, c, deployment.Bare(args[0]))
		},
		ValidArgsFunction: a.completeOne(deployment),
	}
	below.Flags().Var(&timeout, "timeout", "give up after this time, such as 5m; without it watch waits as long as it takes")
	return parent("watch", "Follow a deployment until all is served", "", below)
}

func (a *app) watch(ctx context.Context, c *connect.Client, name string) error {
	view := progress.New(progress.Config{
		Out: a.env.Out, Live: output.Terminal(a.env.Out), Colour: a.colours(), Width: func() int { return output.Width(a.env.Out) }, Now: a.now,
	})
	seen := false
	for {
		last, err := follow(ctx, c, name, func(d *deployerv1.Deployment) error {
			seen = true
			return view.Show(d)
		})
		switch {
		case ctx.Err() != nil:
			return watchEnded(name, ctx.Err())
		case err == nil && last != nil:
			return outcome(last)
		case err == nil || seen && comesBack(err):
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return watchEnded(name, ctx.Err())
		case <-time.After(watchPause):
		}
	}
}

// comesBack says whether a broken stream is worth opening again: the server is
// away, or it ended an old connection.
func comesBack(err error) bool {
	switch fault.KindOf(err) {
	case fault.Transient, fault.Exhausted:
		return true
	}
	return false
}

// follow shows each step until the deployment is at an end; then it is given back.
func follow(ctx context.Context, c *connect.Client, name string, show func(*deployerv1.Deployment) error) (*deployerv1.Deployment, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Deployer().WatchDeployment(ctx, &deployerv1.WatchDeploymentRequest{Name: name})
	if err != nil {
		return nil, err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := show(r.GetDeployment()); err != nil {
			return nil, err
		}
		if settled(r.GetDeployment()) {
			return r.GetDeployment(), nil
		}
	}
}

// settled says whether there is nothing more to wait for.
func settled(d *deployerv1.Deployment) bool {
	switch d.GetStatus().GetState() {
	case deployerv1.DeploymentState_DEPLOYMENT_STATE_FAILED:
		return true
	case deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY, deployerv1.DeploymentState_DEPLOYMENT_STATE_UNVERIFIED:
		return len(d.GetStatus().GetAssignments()) >= len(d.GetTargets())
	}
	return false
}

// outcome turns the end into an exit code.
func outcome(d *deployerv1.Deployment) error {
	why := output.Clean(d.GetStatus().GetMessage() + troubles(d))
	switch d.GetStatus().GetState() {
	case deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY:
		return nil
	case deployerv1.DeploymentState_DEPLOYMENT_STATE_UNVERIFIED:
		return exit.Errorf(exit.Unverified, "deployment/%s is not known to be served: %s", d.GetName(), why)
	}
	return exit.Errorf(exit.Failed, "deployment/%s has failed: %s", d.GetName(), why)
}

// troubles tells of the targets that are not served.
func troubles(d *deployerv1.Deployment) string {
	var b strings.Builder
	for _, s := range d.GetStatus().GetAssignments() {
		switch s.GetState() {
		case deployerv1.AssignmentState_ASSIGNMENT_STATE_FAILED, deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED:
			fmt.Fprintf(&b, "; %s: %s", progress.Target(s), output.Word(s.GetState()))
			if s.GetReason() != "" {
				fmt.Fprintf(&b, ", %s (%s)", s.GetMessage(), s.GetReason())
			}
		}
	}
	return b.String()
}

func watchEnded(name string, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return exit.Errorf(exit.Timeout, "deployment/%s is not served yet: the time given by --timeout is over; \"sallyport describe deployment %s\" shows what it waits for", name, name)
}

func (a *app) renewCommand() *cobra.Command {
	deployment, _ := kind.Find(kind.All(), "deployment")
	var host, reason string
	below := &cobra.Command{
		Use:     "deployment NAME",
		Short:   "Begin a new generation of a deployment now",
		Long:    "Begin a new generation of certificates now, whatever the renewal rule says. The old\ncertificates stay served until the new ones are. Also use it after a repair: it does not\nwait for the next attempt. \"sallyport watch deployment NAME\" shows how it goes.",
		Aliases: append([]string{deployment.Plural}, deployment.Aliases...),
		Args:    usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			name := deployment.Bare(args[0])
			r, err := c.Deployer().RenewDeployment(cmd.Context(), &deployerv1.RenewDeploymentRequest{
				Name: name, Host: host, Reason: reason, RequestId: requestID(),
			})
			if err != nil {
				return err
			}
			for _, s := range r.GetAssignments() {
				fmt.Fprintf(a.env.Out, "deployment/%s %s renewing, generation %d\n", name, output.Clean(progress.Target(s)), s.GetGeneration())
			}
			if len(r.GetAssignments()) == 0 {
				fmt.Fprintf(a.env.Err, "deployment/%s: nothing to renew: all its targets are under way already\n", name)
			}
			return nil
		},
		ValidArgsFunction: a.completeOne(deployment),
	}
	below.Flags().StringVar(&host, "host", "", "only the targets on this host")
	below.Flags().StringVar(&reason, "reason", "", "why, for the audit record")
	return parent("renew", "Renew certificates now", "", below)
}
