use super::*;
use crate::Matrix;
use crate::cuda::blas::{Direction, ProductOperands, ProductShape};
use crate::cuda::product::Products;
use crate::linear;

fn check(device: &Arc<Device>, products: &Products, shape: ProductShape, stream: &mut Stream) {
    let ProductShape { dtype, rows, outputs, inputs, .. } = shape;
    let (width, depth) = shape.width_and_depth();
    let weight = rounded(stream, dtype, outputs * inputs);
    let from = rounded(stream, dtype, rows * depth);
    let start = rounded(stream, dtype, rows * width);
    let matrix = Matrix::from_f32(&weight, outputs, inputs);
    let mut expected = if shape.adds { start.clone() } else { vec![0.0; rows * width] };
    match shape.direction {
        Direction::Forward => {
            let mut product = vec![0.0; rows * width];
            linear::forward(&mut product, &from, &matrix, rows);
            expected.iter_mut().zip(product).for_each(|(e, p)| *e += p);
        }
        Direction::Backward => {
            linear::backward(&mut expected, crate::Store::Accumulate, &from, &matrix, rows)
        }
    }
    let to = match shape.adds {
        true => Values::new(device, dtype, &start),
        false => Values::poisoned(device, dtype, rows * width),
    };
    let (weight, from) = (Values::new(device, dtype, &weight), Values::new(device, dtype, &from));
    products.run(
        device,
        shape,
        ProductOperands { to: to.ptr(), from: from.ptr(), weight: weight.ptr(), add: to.ptr() },
    );
    assert_near(&to.read(), &expected, dtype, &format!("{shape:?}"));
}

fn check_all(products: &Products, device: &Arc<Device>) {
    let mut stream = Stream::new(31);
    for dtype in dtypes(device) {
        for (rows, outputs, inputs) in
            [(1, 8, 8), (3, 40, 264), (130, 136, 72), (200, 257, 129), (64, 768, 96), (640, 264, 136)]
        {
            for direction in [Direction::Forward, Direction::Backward] {
                for adds in [false, true] {
                    let shape = ProductShape { direction, dtype, rows, outputs, inputs, adds, exact: false };
                    check(device, products, shape, &mut stream);
                }
            }
        }
    }
}

/// danlu's own products, first with every kernel of the device, and then without those of one architecture.
fn own_products() -> [Products; 2] {
    [Products::default(), Products::general()]
}

#[test]
fn own_products_equal_the_reference() {
    let Some(device) = device() else { return };
    own_products().iter().for_each(|products| check_all(products, &device));
}

#[test]
fn own_products_with_many_tiles_equal_the_reference() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(33);
    for dtype in dtypes(&device).filter(|&dtype| dtype != DType::F32) {
        for (direction, outputs, inputs) in
            [(Direction::Forward, 2056, 200), (Direction::Backward, 200, 2056)]
        {
            // 1100 rows are nine tiles, which the kernel processes in groups of eight. Large tiles occupy the
            // device.
            let shape =
                ProductShape { direction, dtype, rows: 1100, outputs, inputs, adds: true, exact: false };
            own_products().iter().for_each(|products| check(&device, products, shape, &mut stream));
        }
    }
}

#[test]
fn own_products_with_a_split_inner_dimension_equal_the_reference() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(34);
    for dtype in dtypes(&device).filter(|&dtype| dtype != DType::F32) {
        for (direction, outputs, inputs) in
            [(Direction::Forward, 264, 1608), (Direction::Backward, 1608, 264)]
        {
            for (rows, adds) in [(9, false), (200, true), (300, true)] {
                let shape = ProductShape { direction, dtype, rows, outputs, inputs, adds, exact: false };
                own_products().iter().for_each(|products| check(&device, products, shape, &mut stream));
            }
        }
    }
}

#[test]
fn the_librarys_products_equal_the_reference() {
    let Some(device) = device() else { return };
    let products = Products::open(&device).unwrap();
    assert!(products.library().is_some(), "install cuBLASLt: {}", crate::cuda::Survey::CUBLASLT_INSTALL);
    check_all(&products, &device);
}

#[test]
fn repeated_products_give_the_same_bytes() {
    let Some(device) = device() else { return };
    let mut stream = Stream::new(32);
    let (dtype, outputs, inputs) = (DType::F16, 512, 1024);
    for products in own_products().into_iter().chain([Products::open(&device).unwrap()]) {
        for (direction, rows) in
            [(Direction::Forward, 96), (Direction::Backward, 96), (Direction::Forward, 300)]
        {
            let shape = ProductShape { direction, dtype, rows, outputs, inputs, adds: false, exact: false };
            let (width, depth) = shape.width_and_depth();
            let weight = Values::new(&device, dtype, &rounded(&mut stream, dtype, outputs * inputs));
            let from = Values::new(&device, dtype, &rounded(&mut stream, dtype, rows * depth));
            let mut runs = (0..3).map(|_| {
                let to = Values::poisoned(&device, dtype, rows * width);
                products.run(
                    &device,
                    shape,
                    ProductOperands { to: to.ptr(), from: from.ptr(), weight: weight.ptr(), add: to.ptr() },
                );
                to.read()
            });
            let first = runs.next().unwrap();
            assert!(runs.all(|run| run == first), "{shape:?}");
        }
    }
}
