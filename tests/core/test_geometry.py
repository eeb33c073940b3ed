"""Pixels and cells: truth by hand, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcorr.geometry import Grid, rescale, resized_size

sides = st.integers(1, 900)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    size = draw(sides), draw(sides)
    return Grid(
        image_size=size,
        resized_size=resized_size(size, draw(st.integers(16, 900))),
        stride=draw(st.sampled_from([7, 8, 14, 16])),
        upsample=draw(st.sampled_from([1, 2, 4])),
    )


def test_first_cell_is_centred_on_its_patch():
    grid = Grid(image_size=(28, 28), resized_size=(28, 28), stride=14)
    assert grid.shape == (2, 2)
    np.testing.assert_allclose(grid.cells_to_pixels(np.array([[0.0, 0.0], [1.0, 0.0]])), [[6.5, 6.5], [20.5, 6.5]])


def test_axes_have_their_own_scale():
    # 100 x 333 pixels at long side 224 are 67 x 224: 0.67 down, 0.6727 across.
    grid = Grid(image_size=(100, 333), resized_size=(67, 224), stride=16)
    np.testing.assert_allclose(grid.pixels_to_cells(np.array([[332.5, 99.5]])), [[224 / 16 - 0.5, 67 / 16 - 0.5]])


@pytest.mark.parametrize(
    ("resized", "shape"),
    [((28, 28), (2, 2)), ((29, 28), (3, 2)), ((42, 28), (3, 2)), ((1, 28), (1, 2))],
    ids=["whole", "one row of pixels", "whole again", "never none"],
)
def test_a_cell_is_valid_when_it_sees_the_image(resized, shape):
    assert Grid(image_size=resized, resized_size=resized, stride=14).shape == shape


@given(grids(), st.floats(-5, 905), st.floats(-5, 905))
def test_there_and_back(grid, x, y):
    points = np.array([[x, y]])
    np.testing.assert_allclose(grid.cells_to_pixels(grid.pixels_to_cells(points)), points, atol=1e-6)


@given(grids(), st.floats(0, 1), st.floats(0, 1))
def test_the_nearest_cell_answers_within_half_a_cell(grid, x, y):
    """Of any point of the image, padding or not, and the answer lies on the image."""
    height, width = grid.shape
    point = np.array([x * (grid.image_size[1] - 1), y * (grid.image_size[0] - 1)])
    cell = np.clip(np.round(grid.pixels_to_cells(point)), 0, (width - 1, height - 1))
    answer = grid.answers(cell)
    scale = np.array(grid.resized_size[::-1]) / grid.image_size[::-1]
    assert (np.abs(answer - point) * scale <= grid.pitch / 2 + 1e-6).all()
    assert (answer >= 0).all()
    assert (answer <= np.array(grid.image_size[::-1]) - 1).all()


@given(st.floats(-10, 500), st.integers(1, 500), st.integers(1, 500))
def test_resizing_keeps_the_edges_of_the_image(x, old, new):
    point = np.array([x])
    np.testing.assert_allclose(rescale(rescale(point, old, new), new, old), point, atol=1e-6)
    assert rescale(np.array([-0.5]), old, new) == -0.5
    np.testing.assert_allclose(rescale(np.array([old - 0.5]), old, new), new - 0.5)


def test_long_side_decides():
    assert resized_size((375, 500), 336) == (252, 336)
    assert resized_size((10000, 10), 336) == (336, 1)


@pytest.mark.parametrize("upsample", [2, 4])
def test_finer_cells_share_out_those_of_the_network(upsample):
    """Each of the network's cells is the middle of its finer ones, and no finer cell lies wholly on padding."""
    coarse = Grid(image_size=(60, 90), resized_size=(60, 90), stride=14)
    fine = Grid(image_size=(60, 90), resized_size=(60, 90), stride=14, upsample=upsample)
    first = np.stack(np.meshgrid(np.arange(upsample), np.arange(upsample)), axis=-1).reshape(-1, 2).astype(float)
    centre = fine.cells_to_pixels(first + upsample * np.array([3, 2])).mean(axis=0)
    np.testing.assert_allclose(centre, coarse.cells_to_pixels(np.array([3.0, 2.0])))
    step = 14 / upsample
    assert fine.shape == (np.ceil(60 / step), np.ceil(90 / step))


@given(grids(), st.floats(-5, 905), st.floats(-5, 905))
def test_mirrored_twice_is_not_mirrored(grid, x, y):
    points = np.array([[x, y]])
    assert grid.mirror(np.array([[0.0, y]])).tolist() == [[grid.image_size[1] - 1, y]]
    np.testing.assert_allclose(grid.mirror(grid.mirror(points)), points, atol=1e-9)
