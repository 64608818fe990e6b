package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
)

// maxInput bounds what is read from one file or standard input, in bytes.
const maxInput = 4 << 20

func (a *app) applyCommand() *cobra.Command {
	var (
		files  []string
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or change what documents describe",
		Long: `Create or change authorities, profiles, identities and deployments as YAML
documents describe them ("sallyport explain" shows their fields). Applying the
same documents again changes nothing.

All documents are read and checked first: if one is wrong, nothing is applied
and each one at fault is named with file, line and field. Then they are applied
in the order they depend on each other. When one is refused, what needs it is
skipped, the rest goes on, and the exit code tells the first refusal.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := a.readObjects(files)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			ap := &applier{app: a, client: c, dryRun: dryRun, failed: map[manifest.Ref]bool{}, wouldMake: map[manifest.Ref]bool{}}
			return ap.all(cmd.Context(), objects)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, directory with .yaml, .yml and .json files, or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "let the services check everything and change nothing")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
	return cmd
}

// readObjects reads and checks all documents of all files.
func (a *app) readObjects(args []string) ([]manifest.Object, error) {
	if len(args) == 0 {
		return nil, exit.Errorf(exit.Usage, "apply what? Give -f FILE, -f DIR or -f -")
	}
	var objects []manifest.Object
	var errs []error
	for _, arg := range args {
		paths, err := expand(arg)
		if err != nil {
			return nil, exit.With(exit.Usage, err)
		}
		for _, path := range paths {
			name, data, err := a.readInput(path)
			if err != nil {
				return nil, exit.With(exit.Usage, err)
			}
			found, err := manifest.Parse(name, data)
			if err != nil {
				errs = append(errs, err)
			}
			objects = append(objects, found...)
		}
	}
	errs = append(errs, manifest.Order(objects))
	if err := errors.Join(errs...); err != nil {
		return nil, exit.With(exit.Usage, err)
	}
	if len(objects) == 0 {
		return nil, exit.Errorf(exit.Usage, "no documents in %s", strings.Join(args, ", "))
	}
	return objects, nil
}

// expand lists the files of a directory; anything else is itself.
func expand(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading documents: %w", err)
	}
	if !fi.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("reading documents: %w", err)
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no .yaml, .yml or .json file in %s", path)
	}
	return files, nil
}

func (a *app) readInput(path string) (name string, data []byte, err error) {
	r := a.env.In
	name = "standard input"
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", nil, fmt.Errorf("reading documents: %w", err)
		}
		defer f.Close()
		r, name = f, path
	}
	data, err = io.ReadAll(io.LimitReader(r, maxInput+1))
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("reading %s: %w", name, err)
	case len(data) > maxInput:
		return "", nil, fmt.Errorf("reading %s: larger than %d bytes", name, maxInput)
	}
	return name, data, nil
}

// applier carries one run over the objects.
type applier struct {
	app       *app
	client    *connect.Client
	dryRun    bool
	failed    map[manifest.Ref]bool
	wouldMake map[manifest.Ref]bool // in a dry run: what does not exist yet
}

func (p *applier) all(ctx context.Context, objects []manifest.Object) error {
	var errs []error
	for _, o := range objects {
		if need, ok := p.blocked(o); ok {
			p.failed[o.Ref] = true
			fmt.Fprintf(p.app.env.Err, "%s skipped: it needs %s, which was refused\n", o.Ref, need)
			continue
		}
		err := p.one(ctx, o)
		if err == nil {
			continue
		}
		p.failed[o.Ref] = true
		errs = append(errs, located(o, err))
		if code := exit.Of(err); code == exit.Unreachable || code == exit.Interrupted || code == exit.Timeout {
			break // the next would end the same
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return exit.With(exit.Of(errs[0]), errors.Join(errs...))
}

func (p *applier) blocked(o manifest.Object) (manifest.Ref, bool) {
	for _, need := range o.Needs() {
		if p.failed[need] {
			return need, true
		}
	}
	return manifest.Ref{}, false
}

func (p *applier) one(ctx context.Context, o manifest.Object) error {
	exists, err := p.exists(ctx, o.Ref)
	if err != nil {
		return err
	}
	changed, warnings, err := p.call(ctx, o)
	note := ""
	if p.dryRun {
		note = " (dry run)"
		if !exists {
			p.wouldMake[o.Ref] = true
		}
		if needs := p.notYet(o); err != nil && needs != "" && unmet(err) {
			err, changed, note = nil, true, " (dry run; checked without "+needs+", which would be created first)"
		}
	}
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintf(p.app.env.Err, "warning: %s: %s\n", o.Ref, w)
	}
	word := "unchanged"
	switch {
	case !exists:
		word = "created"
	case changed:
		word = "configured"
	}
	_, err = fmt.Fprintf(p.app.env.Out, "%s %s%s\n", o.Ref, word, note)
	return err
}

// notYet names what o needs and a dry run has not created.
func (p *applier) notYet(o manifest.Object) string {
	var needs []string
	for _, need := range o.Needs() {
		if p.wouldMake[need] {
			needs = append(needs, need.String())
		}
	}
	return strings.Join(needs, " and ")
}

// unmet says whether a refusal may come from something missing.
func unmet(err error) bool {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Precondition, fault.Permanent, fault.InvalidArgument:
		return true
	}
	return false
}

func (p *applier) exists(ctx context.Context, ref manifest.Ref) (bool, error) {
	var err error
	switch ref.Kind {
	case manifest.KindAuthority:
		_, err = p.client.Issuer().GetAuthority(ctx, &issuerv1.GetAuthorityRequest{Name: ref.Name})
	case manifest.KindProfile:
		_, err = p.client.Issuer().GetProfile(ctx, &issuerv1.GetProfileRequest{Name: ref.Name})
	case manifest.KindIdentity:
		_, err = p.client.Inventory().GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: ref.Name})
	case manifest.KindDeployment:
		_, err = p.client.Deployer().GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: ref.Name})
	}
	if notFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (p *applier) call(ctx context.Context, o manifest.Object) (changed bool, warnings []string, err error) {
	switch m := o.Message.(type) {
	case *issuerv1.Authority:
		r, err := p.client.Issuer().ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: m, ValidateOnly: p.dryRun})
		return r.GetChanged(), nil, err
	case *issuerv1.Profile:
		r, err := p.client.Issuer().ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: m, ValidateOnly: p.dryRun})
		return r.GetChanged(), nil, err
	case *inventoryv1.Identity:
		r, err := p.client.Inventory().ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: m, ValidateOnly: p.dryRun})
		return r.GetChanged(), nil, err
	case *deployerv1.Deployment:
		r, err := p.client.Deployer().ApplyDeployment(ctx, &deployerv1.ApplyDeploymentRequest{Deployment: m, ValidateOnly: p.dryRun})
		return r.GetChanged(), r.GetWarnings(), err
	}
	return false, nil, fmt.Errorf("applying %s: unknown kind", o.Ref)
}

// located gives a service's complaint about a field the field's place in the file.
func located(o manifest.Object, err error) error {
	e := fault.Of(err)
	if e.Kind != fault.InvalidArgument || e.Field == "" {
		return fmt.Errorf("%s: %w", o.Ref, err)
	}
	field := strings.TrimPrefix(e.Field, strings.ToLower(string(o.Kind))+".")
	return exit.With(exit.Usage, o.Errorf(field, "%s", e.Message))
}
