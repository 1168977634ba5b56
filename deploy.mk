# make deploy          from nothing to a running service: stack, images, stack with images (ENV=default|dev|prod)
# make images          build the images here, check and push them, write their digests into samconfig.toml
# make images-cloud    the same in your AWS account, without a container engine
# make delete          delete the stack; photos and the job table stay (docs/removal.md)
ENV            ?= default
ACCOUNT_REGION ?=
TRAIN_ENGINE   ?= gpu
SAM            ?= $(shell command -v sam || echo build/deploy/sam/bin/sam)
IMAGES         ?= $(shell command -v docker >/dev/null && echo images || echo images-cloud)
IMAGE_OPTIONS   = --env $(ENV) --train-engine $(TRAIN_ENGINE) $(if $(ACCOUNT_REGION),--account-region $(ACCOUNT_REGION))

# Deploying needs SAM and Python's AWS client alone; both are in this environment of their own.
AWS_PYTHON      = build/deploy/sam/bin/python

.PHONY: deploy account stack images images-cloud delete

# The first pass makes the repositories that the images are pushed to, the second names the pushed images.
deploy: account
	$(MAKE) stack
	$(MAKE) $(IMAGES)
	$(MAKE) stack

# Whether there is an account at all, before anything is built.
account: build/deploy/sam/bin/sam
	@$(AWS_PYTHON) -m deploy.account

stack: $(SAM) account
	$(SAM) build --config-env $(ENV)
	$(SAM) deploy --config-env $(ENV) --no-confirm-changeset

images images-cloud: account
	$(AWS_PYTHON) -m deploy.push_images $(if $(filter images,$@),push,cloud) $(IMAGE_OPTIONS)

delete: $(SAM) account
	$(SAM) delete --config-env $(ENV)

build/deploy/sam/bin/sam: deploy/requirements/sam.txt
	$(PYTHON) -m venv build/deploy/sam
	build/deploy/sam/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
