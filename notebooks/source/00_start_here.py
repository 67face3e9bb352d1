# %% [markdown]
# # 00 · Start here
#
# {{badge}}

# %%
# SETUP

# %% [markdown]
# EXERCISE text
# Write `rms_norm`.

# %%
# EXERCISE rms-norm

# %%
# CHECK rms-norm

# %% tags=["nbval-check-output"]
print(float(rms_norm(torch.ones(1, 4), torch.ones(4)).sum()))

# %%
fig, ax = plt.subplots()
ax.plot([1, 2], [3, 4])
viz.show(fig, alt="A test figure with a line that goes up")

# %% tags=["nbval-ignore-output"]
def draw(n):
    fig, ax = plt.subplots()
    ax.plot(range(n))
    return fig


viz.play(draw, n=(1, 5))
